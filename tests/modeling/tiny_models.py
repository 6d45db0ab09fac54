"""Models of a few thousand weights, with each kind of RoI heads."""

from __future__ import annotations

import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from cellseg_d2 import load_config

HEADS = ["StandardROIHeads", "CascadeROIHeads", "Res5ROIHeads"]


def model_options(heads: str) -> list[str]:
    """A tiny model with ROI heads of a kind."""
    options = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18"]
    options += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.WIDTH_PER_GROUP", "16"]
    options += [
        "MODEL.RESNETS.NORM",
        "BN",
        "MODEL.BACKBONE.FREEZE_AT",
        "0",
        "MODEL.MASK_ON",
        "True",
    ]
    options += ["MODEL.ROI_HEADS.NAME", heads, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    options += ["MODEL.RPN.POST_NMS_TOPK_TEST", "200", "TEST.DETECTIONS_PER_IMAGE", "200"]
    options += ["MODEL.PIXEL_MEAN", "[128.0,128.0,128.0]", "MODEL.PIXEL_STD", "[64.0,64.0,64.0]"]
    if heads == "Res5ROIHeads":
        options += ["MODEL.BACKBONE.NAME", "build_resnet_backbone"]
        options += ["MODEL.RESNETS.OUT_FEATURES", "['res4']", "MODEL.RESNETS.DEPTH", "50"]
        options += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "32"]
        options += ["MODEL.ANCHOR_GENERATOR.SIZES", "[[8, 16, 32]]"]
        options += ["MODEL.ROI_MASK_HEAD.NUM_CONV", "0", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"]
        return options
    levels = "['p2','p3','p4','p5']"
    options += ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]
    options += ["MODEL.RESNETS.OUT_FEATURES", "['res2','res3','res4','res5']"]
    options += ["MODEL.FPN.IN_FEATURES", "['res2','res3','res4','res5']"]
    options += ["MODEL.FPN.OUT_CHANNELS", "8", "MODEL.RPN.IN_FEATURES", levels]
    options += ["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64]]"]
    options += ["MODEL.ROI_HEADS.IN_FEATURES", levels, "MODEL.ROI_BOX_HEAD.FC_DIM", "16"]
    options += ["MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", "1"]
    options += ["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "7", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"]
    options += ["MODEL.ROI_MASK_HEAD.CONV_DIM", "8"]
    if heads == "CascadeROIHeads":
        options += ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]
    return options


def build(heads: str, *options: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model(load_config(options=model_options(heads) + list(options))).eval()
    # Fresh weights give all boxes almost one score; Res5's features are 30 times the others'.
    std = 0.015 if heads == "Res5ROIHeads" else 0.5
    for name, parameter in model.named_parameters():
        if "cls_score.weight" in name or "bbox_pred.weight" in name:
            torch.nn.init.normal_(parameter, std=std if "cls" in name else std / 10)
    return model


def predict(model: torch.nn.Module) -> Instances:
    image = torch.randint(0, 255, (3, 64, 80), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model([{"image": image, "height": 96, "width": 120}])[0]["instances"]
