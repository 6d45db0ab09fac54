"""Post-processing against Detectron2's own, bit for bit."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from cellseg_d2.modeling import rescale_to_rles


def raw_answer(count: int, seed: int = 0) -> Instances:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([90.0, 60.0]) - 5
    sizes = torch.rand(count, 2, generator=generator) * 25
    boxes = torch.cat([corners, corners + sizes], dim=1)
    if count:
        boxes[0] = torch.tensor([200.0, 10.0, 220.0, 20.0])  # outside: dropped by both
    smooth = torch.rand(count, 1, 7, 7, generator=generator)
    masks = (
        torch.nn.functional.interpolate(smooth, size=28, mode="bicubic")
        if count
        else torch.zeros(0, 1, 28, 28)
    )
    return Instances(
        (60, 90),
        pred_boxes=Boxes(boxes),
        scores=torch.rand(count, generator=generator),
        pred_classes=torch.arange(count) % 3,
        pred_masks=masks.clamp(0, 1),
    )


@pytest.mark.parametrize("size", [(60, 90), (120, 180), (47, 61)])
@pytest.mark.parametrize("count", [0, 40])
def test_equals_upstream(size: tuple[int, int], count: int) -> None:
    raw = raw_answer(count)
    ours = rescale_to_rles(raw, *size)
    theirs = detector_postprocess(raw_answer(count), *size)
    assert ours.image_size == theirs.image_size == size
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.pred_classes, theirs.pred_classes)
    expected = [
        mask_utils.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        for mask in theirs.pred_masks
    ]
    assert ours.pred_masks.rles == expected
    assert len(ours) < count or count == 0


def test_the_raw_answer_is_left_as_it_was() -> None:
    raw = raw_answer(5)
    before = raw.pred_boxes.tensor.clone()
    rescale_to_rles(raw, 30, 45)
    assert torch.equal(raw.pred_boxes.tensor, before)


def test_a_model_without_masks() -> None:
    raw = raw_answer(5)
    raw.remove("pred_masks")
    assert not rescale_to_rles(raw, 60, 90).has("pred_masks")
