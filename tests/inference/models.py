"""A tiny model with random weights, saved, that several test modules of this folder share."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from cellseg_d2 import load_config

LEVELS = "['p2','p3','p4','p5']"
OPTIONS = [
    *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.WIDTH_PER_GROUP", "16"),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.MASK_ON", "True"),
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res2','res3','res4','res5']"),
    *("MODEL.FPN.IN_FEATURES", "['res2','res3','res4','res5']"),
    *("MODEL.RPN.IN_FEATURES", LEVELS, "MODEL.ROI_HEADS.IN_FEATURES", LEVELS),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64]]"),
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.05"),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", "1"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "7"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "100", "TEST.DETECTIONS_PER_IMAGE", "100"),
    *("MODEL.PIXEL_MEAN", "[128.0,128.0,128.0]", "MODEL.PIXEL_STD", "[64.0,64.0,64.0]"),
    *("INPUT.MIN_SIZE_TEST", "0"),
]


def tiny_config(*options: str) -> CfgNode:
    """The config of the tiny model."""
    return load_config(options=OPTIONS + list(options))


def save_weights(path: Path, seed: int) -> Path:
    """Draw the tiny model's weights, so that scores and masks differ from cell to cell."""
    torch.manual_seed(seed)
    model = build_model(tiny_config())
    for name, parameter in model.named_parameters():
        if "cls_score.weight" in name or "mask_head.predictor.weight" in name:
            torch.nn.init.normal_(parameter, std=0.5)
        if "bbox_pred.weight" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    torch.save({"model": model.state_dict()}, path)
    return path
