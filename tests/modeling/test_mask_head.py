"""The mask head against Detectron2's own, on bitmaps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import (
    MaskRCNNConvUpsampleHead,
    build_mask_head,
    mask_rcnn_loss,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from cellseg_d2 import load_config
from cellseg_d2.modeling import CellMaskHead
from cellseg_d2.modeling.losses import dice
from cellseg_d2.modeling.mask_head import ROIS_AT_A_TIME, roi_mask_loss
from cellseg_d2.structures import LabelMasks

SHAPE = ShapeSpec(channels=6, width=14, height=14)


def proposals(count: int, seed: int = 0) -> Instances:
    """Boxes around squares of a label map, moved a little."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((1, 60, 90), np.int32)
    boxes = []
    for index in range(count):
        x, y = (index % 8) * 11, (index // 8) * 11
        labels[0, y + 2 : y + 9, x + 1 : x + 8] = index + 1
        boxes.append([x, y, x + 9, y + 10])
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Instances(
        (60, 90),
        proposal_boxes=Boxes(torch.from_numpy(corners + rng.normal(0, 1, corners.shape)).float()),
        gt_classes=torch.from_numpy(rng.integers(0, 4, count)),
        gt_masks=LabelMasks(
            torch.from_numpy(labels),
            torch.zeros(count, dtype=torch.int64),
            torch.arange(1, count + 1),
        ),
    )


def with_bitmaps(instances: Instances) -> Instances:
    fields = instances.get_fields() | {"gt_masks": instances.gt_masks.to_bit_masks()}
    return Instances(instances.image_size, **fields)


def config(*options: str):
    return load_config(
        options=["MODEL.ROI_MASK_HEAD.NAME", "CellMaskHead", "MODEL.ROI_MASK_HEAD.NUM_CONV", "2"]
        + ["MODEL.ROI_MASK_HEAD.CONV_DIM", "8", *options]
    )


def logged(compute: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, dict]:
    with EventStorage() as storage:
        value = compute()
        return value, storage.latest()


@pytest.mark.parametrize("channels", [4, 1])
def test_bce_is_upstreams_loss_to_the_bit(channels: int) -> None:
    batch = [proposals(20), proposals(0), proposals(7, seed=1)]
    ours = torch.randn(27, channels, 28, 28, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    loss = config()
    head = build_mask_head(loss, SHAPE)
    value, log = logged(lambda: roi_mask_loss(ours, batch, head.loss))
    expected, expected_log = logged(
        lambda: mask_rcnn_loss(theirs, [with_bitmaps(item) for item in batch])
    )
    assert torch.equal(value, expected)
    value.backward()
    expected.backward()
    assert torch.equal(ours.grad, theirs.grad)
    assert log == expected_log
    assert {"mask_rcnn/accuracy", "mask_rcnn/false_positive", "mask_rcnn/false_negative"} <= set(
        log
    )


@pytest.mark.parametrize("agnostic", ["True", "False"])
def test_it_has_upstreams_layers_and_answers(agnostic: str) -> None:
    cfg = config("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic)
    ours, theirs = build_mask_head(cfg, SHAPE), MaskRCNNConvUpsampleHead(cfg, SHAPE)
    assert isinstance(ours, CellMaskHead)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    theirs.load_state_dict(ours.state_dict())
    features = torch.randn(9, 6, 14, 14)
    batch = [proposals(9)]
    value, _ = logged(lambda: ours(features, batch)["loss_mask"])
    expected, _ = logged(lambda: theirs(features, [with_bitmaps(batch[0])])["loss_mask"])
    assert torch.equal(value, expected)

    def detections() -> Instances:
        return Instances((60, 90), pred_classes=torch.arange(9) % 4)

    with torch.no_grad():
        (answer,) = ours.eval()(features, [detections()])
        (known,) = theirs.eval()(features, [detections()])
    assert torch.equal(answer.pred_masks, known.pred_masks)


def test_another_loss_sees_the_true_class_and_the_cropped_masks() -> None:
    cfg = config("MODEL.ROI_MASK_HEAD.LOSS", "dice")
    head = build_mask_head(cfg, SHAPE)
    item = proposals(5)
    logits = torch.randn(5, 4, 28, 28)
    value, log = logged(lambda: roi_mask_loss(logits, [item], head.loss))
    targets = item.gt_masks.to_bit_masks().crop_and_resize(item.proposal_boxes.tensor, 28)
    expected = torch.stack(
        [
            dice(logits[i, label][None], targets[i][None])
            for i, label in enumerate(item.gt_classes.tolist())
        ]
    ).mean()
    assert torch.allclose(value, expected)
    assert "mask_rcnn/accuracy" in log


@pytest.mark.parametrize("name", ["bce", "dice", "bce_dice", "tversky"])
def test_no_proposals(name: str) -> None:
    head = build_mask_head(config("MODEL.ROI_MASK_HEAD.LOSS", name), SHAPE)
    value, _ = logged(lambda: head(torch.zeros(0, 6, 14, 14), [proposals(0)])["loss_mask"])
    value.backward()
    assert value.item() == 0
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("name", ["bce", "dice", "bce_dice", "tversky"])
def test_it_learns_a_mask(name: str) -> None:
    torch.manual_seed(0)
    head = build_mask_head(config("MODEL.ROI_MASK_HEAD.LOSS", name), SHAPE)
    features, batch = torch.randn(6, 6, 14, 14), [proposals(6)]
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    losses = []
    for _ in range(60):
        value, _ = logged(lambda: head(features, batch)["loss_mask"])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.8 * losses[0]


def test_pictures_are_logged_as_upstream_logs_them() -> None:
    item = proposals(3)
    logits = torch.randn(3, 4, 28, 28)
    with EventStorage() as storage:
        roi_mask_loss(logits, [item], dice, vis_period=1)
    with EventStorage() as expected:
        mask_rcnn_loss(logits, [with_bitmaps(item)], vis_period=1)
    assert len(storage._vis_data) == len(expected._vis_data) == 3
    for ours, theirs in zip(storage._vis_data, expected._vis_data, strict=True):
        assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("counts", [(0, 0), (3, 0), (128, 0), (100, 29), (20, 300)])
def test_masks_are_predicted_in_parts_and_are_upstreams(counts: tuple[int, int]) -> None:
    head = build_mask_head(config(), SHAPE).eval()
    pooled = torch.randn(sum(counts), 6, 14, 14)
    sizes: list[int] = []
    head.mask_fcn1.register_forward_hook(lambda *arguments: sizes.append(len(arguments[1][0])))

    def detections() -> list[Instances]:
        classes = [torch.arange(count) % 4 for count in counts]
        return [Instances((60, 90), pred_classes=part) for part in classes]

    with torch.no_grad():
        ours = head(pooled, detections())
        assert max(sizes) <= ROIS_AT_A_TIME and sum(sizes) == sum(counts)
        theirs = MaskRCNNConvUpsampleHead.forward(head, pooled, detections())
    for one, other in zip(ours, theirs, strict=True):
        assert one.pred_masks.shape == (len(one), 1, 28, 28)
        torch.testing.assert_close(one.pred_masks, other.pred_masks, rtol=0, atol=1e-6)
