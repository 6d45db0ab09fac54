"""torchvision's detectors, converted, against themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn
from torchvision.models import detection
from torchvision.models.detection._utils import overwrite_eps
from torchvision.ops import FrozenBatchNorm2d

from cellseg_d2 import load_config
from cellseg_d2.checkpoint import CellCheckpointer
from cellseg_d2.checkpoint.convert import convert_weights

from .networks import (
    CLASSES,
    RESNET_OPTIONS,
    RESNETS,
    assert_close,
    converted,
    image,
    load_backbone,
    randomize,
    resnet_features,
)


# Detectors
def parity_config(weights: str, *options: object) -> CfgNode:
    """What torchvision's Mask R-CNN does, in Detectron2's keys; its rounded anchors apart."""
    return load_config(
        options=[
            *("MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True),
            *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", *RESNET_OPTIONS),
            *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53]),
            *("MODEL.PIXEL_STD", [58.395, 57.12, 57.375], "INPUT.FORMAT", "RGB"),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
            *("MODEL.ANCHOR_GENERATOR.OFFSET", 0.0),
            *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
            *("MODEL.RPN.PRE_NMS_TOPK_TEST", 1000, "MODEL.RPN.POST_NMS_TOPK_TEST", PROPOSALS),
            *("TEST.DETECTIONS_PER_IMAGE", DETECTIONS),
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
            *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05),
            *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 2),
            *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
            *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"),
            *("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2),
            *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
            *("MODEL.ROI_MASK_HEAD.NUM_CONV", 4, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14),
            *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign"),
            *("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 2),
            *options,
        ]
    )


V2 = [
    *("MODEL.FPN.NORM", "BN", "MODEL.RPN.CONV_DIMS", [-1, -1]),
    *("MODEL.ROI_BOX_HEAD.NUM_CONV", 4, "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
    *("MODEL.ROI_BOX_HEAD.NORM", "BN", "MODEL.ROI_MASK_HEAD.NORM", "BN"),
]


def torchvision_detector(version: int) -> nn.Module:
    """A detector whose classes, scores and boxes differ from place to place."""
    torch.manual_seed(version)
    build = detection.maskrcnn_resnet50_fpn if version == 1 else detection.maskrcnn_resnet50_fpn_v2
    model = build(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        min_size=min(SIZE),
        max_size=max(SIZE),
        rpn_post_nms_top_n_test=PROPOSALS,
        box_detections_per_img=DETECTIONS,
    )
    randomize(model)
    with torch.no_grad():
        # The residual sums of random blocks grow with depth; this brings them back to ImageNet's.
        for module in model.backbone.body.modules():
            if hasattr(module, "bn3"):
                module.bn3.weight.mul_(0.2)
        for name, gain in (("rpn.head.cls_logits", 20), ("rpn.head.bbox_pred", 2)):
            model.get_submodule(name).weight.mul_(gain)
        logits: list[torch.Tensor] = []
        score = model.roi_heads.box_predictor.cls_score
        handle = score.register_forward_hook(lambda module, x, y: logits.append(y))
        torchvision_answer(model, random_pixels())
        handle.remove()
        std, mean = torch.std_mean(logits[0], dim=0)
        score.weight.div_(std[:, None])
        score.bias.sub_(mean).div_(std)
    return model


SIZE = (128, 192)
"""Multiples of 64: for others torchvision takes p6's stride to be less than 64."""


PROPOSALS, DETECTIONS = 50, 40


def random_pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (3, *SIZE), generator=generator).float()


@torch.no_grad()
def torchvision_answer(model: nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Boxes, scores, labels and the masks of the RoIs, before they are pasted."""
    images, _ = model.transform([pixels / 255])
    assert images.tensors.shape[2:] == SIZE
    features = model.backbone(images.tensors)
    proposals, _ = model.rpn(images, features)
    (answer,), _ = model.roi_heads(features, proposals, images.image_sizes)
    return answer


@pytest.mark.parametrize(("version", "options"), [(1, []), (2, V2)], ids=["v1", "v2"])
def test_detector_gives_equal_boxes_scores_and_masks(version, options, tmp_path: Path) -> None:
    theirs = torchvision_detector(version)
    cfg = parity_config(converted(theirs, tmp_path), *options)
    ours = build_model(cfg).eval()
    CellCheckpointer(ours, complete=True).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    for anchors in ours.proposal_generator.anchor_generator.cell_anchors:
        anchors.copy_(anchors.round())
    pixels = random_pixels()
    expected = torchvision_answer(theirs, pixels)
    with torch.no_grad():
        (found,) = ours.inference([{"image": pixels}], do_postprocess=False)
    assert len(found) == len(expected["scores"]) == DETECTIONS
    assert len(found.pred_classes.unique()) == CLASSES
    assert expected["scores"].std() > 0.01 and expected["masks"].std() > 0.01
    torch.testing.assert_close(found.scores, expected["scores"], rtol=0, atol=1e-4)
    assert torch.equal(found.pred_classes, expected["labels"] - 1)
    torch.testing.assert_close(found.pred_boxes.tensor, expected["boxes"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.pred_masks, expected["masks"], rtol=0, atol=1e-4)


def test_old_names_of_the_detectors_layers() -> None:
    # What torchvision's own _load_from_state_dict renames for files of older versions.
    model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    new = convert_weights(model.state_dict())
    renamed = {
        "rpn.head.conv.0.0.": "rpn.head.conv.",
        **{
            f"backbone.fpn.{k}_blocks.{i}.0.": f"backbone.fpn.{k}_blocks.{i}."
            for k in ("inner", "layer")
            for i in range(4)
        },
        **{
            f"roi_heads.mask_head.{i}.0.": f"roi_heads.mask_head.mask_fcn{i + 1}." for i in range(4)
        },
    }
    state = {}
    for name, value in model.state_dict().items():
        prefix = next((p for p in renamed if name.startswith(p)), "")
        state[renamed.get(prefix, "") + name.removeprefix(prefix)] = value
    assert state.keys() != model.state_dict().keys()
    old = convert_weights(state)
    assert old.weights.keys() == new.weights.keys()
    assert all((old.weights[k] == new.weights[k]).all() for k in new.weights)


def test_epsilon_of_the_published_detector(tmp_path: Path) -> None:
    # torchvision sets 0 for COCO_V1; some of its variances are far below Detectron2's 1e-5.
    model = torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d)
    randomize(model)
    model.layer1[0].bn1.running_var[:8] = 1e-9
    model.layer1[0].bn1.weight[:8] *= 1e-4
    overwrite_eps(model, 0.0)
    options = [*RESNETS[0][1], *RESNET_OPTIONS, "MODEL.BACKBONE.NAME", "build_resnet_backbone"]
    plain = load_backbone(converted(model, tmp_path), *options)
    ours = load_backbone(converted(model, tmp_path, epsilon=0.0), *options)
    with torch.no_grad():
        expected = resnet_features(model, image(64, 64))["res3"]
        assert_close(ours(image(64, 64))["res3"], expected)
        assert (plain(image(64, 64))["res3"] - expected).abs().max() > 1e-3
