"""Class weights against PyTorch's weighted cross-entropy, a sum by hand, and upstream's loss."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.data.dataset_mapper import build_instances
from cellseg_d2.modeling.class_weights import ClassWeightedOutputLayers, weight_classes

WEIGHTS = [1.0, 0.5, 4.0]


def predictor(**changes) -> FastRCNNOutputLayers:
    torch.manual_seed(3)
    settings = {"num_classes": 3, "test_topk_per_image": 7, "test_score_thresh": 0.2} | changes
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    return FastRCNNOutputLayers(ShapeSpec(channels=6), box2box_transform=transform, **settings)


def proposals(classes: list[int], seed: int = 0) -> Instances:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(len(classes), 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 8], dim=1)
    return Instances(
        (64, 64),
        proposal_boxes=Boxes(boxes),
        gt_boxes=Boxes(boxes + 1),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )


def losses(layers: FastRCNNOutputLayers, batch: list[Instances], seed: int = 1) -> dict:
    count = sum(map(len, batch))
    features = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) * 30
    with EventStorage():
        return layers.losses(layers(features), batch)


BATCH = [proposals([0, 3, 2, 3, 3], 1), proposals([], 2), proposals([1, 2, 3], 3)]


def test_equal_to_pytorch_and_to_the_sum_by_hand() -> None:
    plain = predictor()
    weighted = ClassWeightedOutputLayers(plain, WEIGHTS)
    features = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)) * 30
    scores, classes = plain(features)[0], torch.cat([b.gt_classes for b in BATCH])
    found = losses(weighted, BATCH)["loss_cls"]
    expected = F.cross_entropy(scores, classes, weight=torch.tensor([*WEIGHTS, 1.0]))
    assert torch.equal(found, expected)
    total = share = 0.0
    for row, true in zip(scores.tolist(), classes.tolist(), strict=True):
        weight = [*WEIGHTS, 1.0][true]
        total += weight * (math.log(sum(map(math.exp, row))) - row[true])
        share += weight
    assert found.item() == pytest.approx(total / share, rel=1e-5)
    assert found.item() != pytest.approx(losses(plain, BATCH)["loss_cls"].item(), rel=1e-2)


@pytest.mark.parametrize("agnostic", [False, True])
def test_weights_of_one_are_upstreams_losses(agnostic: bool) -> None:
    scale = {"loss_cls": 0.5, "loss_box_reg": 2.0}
    plain = predictor(cls_agnostic_bbox_reg=agnostic, loss_weight=scale)
    weighted = ClassWeightedOutputLayers(plain, [1.0] * 3)
    expected, found = losses(plain, BATCH), losses(weighted, BATCH)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected)
    assert torch.equal(found["loss_box_reg"], expected["loss_box_reg"])


def test_without_proposals_the_loss_is_zero() -> None:
    found = losses(ClassWeightedOutputLayers(predictor(), WEIGHTS), [proposals([])])
    assert [value.item() for value in found.values()] == [0.0, 0.0]


def test_layers_settings_and_names_are_the_plain_ones() -> None:
    plain = predictor()
    weighted = ClassWeightedOutputLayers(plain, WEIGHTS)
    assert weighted.state_dict().keys() == plain.state_dict().keys()
    assert all(a is b for a, b in zip(weighted.parameters(), plain.parameters(), strict=True))
    assert (weighted.test_topk_per_image, weighted.test_score_thresh) == (7, 0.2)
    assert weighted.class_weights.tolist() == [*WEIGHTS, 1.0]


HEADS = {
    "mask_rcnn_R_18_FPN_small": 1,
    "cascade_X_101_FPN": 3,
    "report4_R_50_C4": 1,
}


def narrow(name: str, repository: Path, weights: list[float]) -> CfgNode:
    options = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.RES2_OUT_CHANNELS", 32]
    if name != "report4_R_50_C4":
        options += ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.NUM_GROUPS", 1]
        options += ["MODEL.RESNETS.WIDTH_PER_GROUP", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    options += ["MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32]
    options += ["MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50]
    options += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16]
    options += ["MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS", weights]
    return load_config(repository / "configs" / f"{name}.yaml", options)


@pytest.mark.parametrize("name", HEADS)
def test_every_kind_of_roi_heads_trains_with_weights(name: str, repository: Path) -> None:
    weights = [1.0, 1.0, 5.0, 5.0]
    torch.manual_seed(0)
    model = build_model(narrow(name, repository, weights))
    heads = [m for m in model.modules() if isinstance(m, ClassWeightedOutputLayers)]
    assert len(heads) == HEADS[name]
    assert not [m for m in model.modules() if type(m) is FastRCNNOutputLayers]
    plain = build_model(narrow(name, repository, []))
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert not [m for m in plain.modules() if isinstance(m, ClassWeightedOutputLayers)]
    labels = np.zeros((64, 80), np.int32)
    labels[5:20, 5:25] = 1
    instances = build_instances([labels], [2], {2: np.array([1])}, (64, 80))
    image = torch.zeros(3, 64, 80, dtype=torch.uint8)
    with EventStorage():
        found = model([{"image": image, "instances": instances, "height": 64, "width": 80}])
    sum(found.values()).backward()
    assert all(h.cls_score.weight.grad.abs().sum() > 0 for h in heads)


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0, 2.0], "2 weights.*is 3"), ([1, 0, 1], "positive"), ([1, math.inf, 1], "positive")],
)
def test_weights_that_are_refused(weights: list, message: str) -> None:
    heads = torch.nn.ModuleDict({"box_predictor": predictor()})
    with pytest.raises(ConfigError, match=f"CLASS_WEIGHTS.*{message}"):
        weight_classes(heads, weights)


def test_heads_without_the_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="no effect on Linear"):
        weight_classes(torch.nn.Linear(2, 2), [1.0])
