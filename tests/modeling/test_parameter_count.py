"""Our two ResNet-50-FPN models against torchvision's, with every difference named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2

from cellseg_d2 import load_config
from cellseg_d2.modeling.parameter_count import build_meta_model, count_parameters

CLASSES = 4


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def batch_norms(*modules: nn.Module) -> int:
    found = (m for module in modules for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    return count(*found)


def background_rows(model: nn.Module) -> int:
    """What torchvision predicts of the background: a box of its own, and a mask."""
    heads = model.roi_heads
    boxes, masks = heads.box_predictor.bbox_pred, heads.mask_predictor.mask_fcn_logits
    assert (boxes.out_features, masks.out_channels) == (4 * (CLASSES + 1), CLASSES + 1)
    return 4 * (boxes.in_features + 1) + (masks.in_channels + 1)


def torchvision_model(build) -> nn.Module:
    with torch.device("meta"):
        return build(weights=None, weights_backbone=None, num_classes=CLASSES + 1)


def test_v1_is_torchvisions(repository: Path) -> None:
    theirs = torchvision_model(maskrcnn_resnet50_fpn)
    # Without weights torchvision builds BatchNorm that trains; here it is FrozenBN, all buffers.
    norms = batch_norms(theirs)
    assert (count(theirs), norms, background_rows(theirs)) == (43_991_661, 53_120, 4_357)
    ours = count_parameters(load_config(repository / "configs/report1_R_50_FPN_sgd.yaml"))
    assert ours == 43_934_184 == count(theirs) - norms - background_rows(theirs)


@pytest.mark.parametrize("freeze_at", [0, 2])
def test_v2_is_torchvisions(freeze_at: int, repository: Path) -> None:
    theirs = torchvision_model(maskrcnn_resnet50_fpn_v2)
    assert (count(theirs), background_rows(theirs)) == (45_896_557, 4_357)
    config = repository / "configs/report1_R_50_FPN_v2_adamw.yaml"
    ours = count_parameters(load_config(config, ["MODEL.BACKBONE.FREEZE_AT", str(freeze_at)]))
    # In a frozen stage BatchNorm becomes FrozenBN; torchvision only stops its gradient.
    body = theirs.backbone.body
    frozen = batch_norms(body.bn1, body.layer1) if freeze_at else 0
    assert ours == count(theirs) - frozen - background_rows(theirs)


def test_part_by_part_v2_is_torchvisions(repository: Path) -> None:
    theirs = torchvision_model(maskrcnn_resnet50_fpn_v2)
    config = repository / "configs/report1_R_50_FPN_v2_adamw.yaml"
    ours = build_meta_model(load_config(config, ["MODEL.BACKBONE.FREEZE_AT", "0"]))
    pairs = {
        "ResNet": (ours.backbone.bottom_up, theirs.backbone.body),
        "RPN": (ours.proposal_generator, theirs.rpn),
        "box head": (ours.roi_heads.box_head, theirs.roi_heads.box_head),
    }
    for name, (our_part, their_part) in pairs.items():
        assert count(our_part) == count(their_part), name
        assert batch_norms(our_part) == batch_norms(their_part), name
    assert batch_norms(ours) == batch_norms(theirs)


def test_the_config_is_left_alone(repository: Path) -> None:
    cfg = load_config(repository / "configs/report4_CBAM_R_50_FPN.yaml")
    cfg.freeze()
    before = cfg.dump()
    assert count_parameters(cfg) > 0
    assert cfg.dump() == before
