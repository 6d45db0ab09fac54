"""Soft-NMS and mask NMS against plain loops, torchvision's NMS and dense masks."""

from __future__ import annotations

import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torchvision.ops import batched_nms

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.modeling import SoftNMS, mask_nms, soft_nms
from cellseg_d2.structures import RLEMasks

from .tiny_models import HEADS, build, predict


def candidates(count: int, seed: int = 0, num_classes: int = 3, side: float = 60.0) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side
    size = 4 + torch.rand(count, 2, generator=generator) * 16
    scores = torch.rand(count, generator=generator)
    classes = torch.randint(num_classes, (count,), generator=generator)
    return torch.cat([corner, corner + size], dim=1), scores, classes


def iou_of(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def soft_nms_by_loops(boxes, scores, classes, method, sigma, iou_threshold, score_threshold):
    """Algorithm 1 of the paper, word for word."""
    waiting = {i: s for i, s in enumerate(scores.tolist()) if s > score_threshold}
    boxes, classes = boxes.double().tolist(), classes.tolist()
    kept = []
    while waiting:
        best = max(waiting, key=lambda i: (waiting[i], -i))
        kept.append((best, waiting.pop(best)))
        for other in list(waiting):
            if classes[other] != classes[best]:
                continue
            iou = iou_of(boxes[best], boxes[other])
            if method == "linear":
                waiting[other] *= 1 - iou if iou >= iou_threshold else 1
            else:
                waiting[other] *= math.exp(-(iou**2) / sigma)
            if waiting[other] <= score_threshold:
                del waiting[other]
    return kept


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("score_threshold", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_soft_nms_equals_loops(method: str, score_threshold: float, seed: int) -> None:
    boxes, scores, classes = candidates(120, seed)
    arguments = {"sigma": 0.5, "iou_threshold": 0.3, "score_threshold": score_threshold}
    keep, lowered = soft_nms(boxes, scores, classes, method=method, **arguments)
    expected = soft_nms_by_loops(boxes, scores, classes, method, *arguments.values())
    assert keep.tolist() == [index for index, _ in expected]
    assert lowered.tolist() == pytest.approx([score for _, score in expected], abs=1e-6)
    assert (lowered < scores[keep]).any()


def test_soft_nms_by_hand() -> None:
    # The second overlaps the first by 1/3, the third both by nothing, the fourth is of its own
    # class.
    boxes = torch.tensor([[0, 0, 10, 10], [5, 0, 15, 10], [30, 0, 40, 10], [0, 0, 10, 10.0]])
    scores, classes = torch.tensor([0.9, 0.8, 0.5, 0.7]), torch.tensor([0, 0, 0, 1])
    keep, lowered = soft_nms(boxes, scores, classes, method="linear", iou_threshold=0.3)
    assert keep.tolist() == [0, 3, 1, 2]
    assert lowered.tolist() == pytest.approx([0.9, 0.7, 0.8 * 2 / 3, 0.5])
    keep, lowered = soft_nms(boxes, scores, classes, method="gaussian", sigma=0.5)
    assert keep.tolist() == [0, 3, 1, 2]
    assert lowered.tolist() == pytest.approx([0.9, 0.7, 0.8 * math.exp(-2 / 9), 0.5])
    keep, lowered = soft_nms(boxes, scores, classes, method="linear", iou_threshold=0.4)
    assert keep.tolist() == [0, 1, 3, 2] and torch.equal(lowered, scores[keep])


@pytest.mark.parametrize("seed", range(3))
def test_a_gaussian_without_width_is_hard_nms(seed: int) -> None:
    boxes, scores, classes = candidates(200, seed)
    keep, lowered = soft_nms(
        boxes, scores, classes, method="gaussian", sigma=1e-12, score_threshold=0.0
    )
    expected = batched_nms(boxes, scores, classes, 0.0)
    assert torch.equal(keep, expected) and torch.equal(lowered, scores[expected])
    assert 3 < len(keep) < 200


@pytest.mark.parametrize("seed", range(3))
def test_linear_is_hard_nms_where_every_lowered_score_falls_below_the_threshold(seed: int) -> None:
    boxes, scores, classes = candidates(200, seed)
    scores = 0.5 + 0.05 * scores + 1e-3
    keep, lowered = soft_nms(
        boxes, scores, classes, method="linear", iou_threshold=0.3, score_threshold=0.5
    )
    expected = batched_nms(boxes, scores, classes, 0.3)
    assert torch.equal(keep, expected) and torch.equal(lowered, scores[expected])
    assert 3 < len(keep) < 200


def test_soft_nms_of_equal_scores_takes_the_first() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4]]).repeat(3, 1)
    keep, lowered = soft_nms(
        boxes, torch.full((3,), 0.5), torch.zeros(3), sigma=0.5, score_threshold=0.0
    )
    assert keep.tolist() == [0, 1, 2]
    assert lowered.tolist() == pytest.approx([0.5, 0.5 * math.exp(-2), 0.5 * math.exp(-4)])


def test_soft_nms_of_boxes_without_area() -> None:
    boxes = torch.tensor([[1.0, 1, 1, 5], [1, 1, 1, 5], [0, 0, 9, 9]])
    keep, lowered = soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3))
    assert keep.tolist() == [0, 1, 2] and lowered.tolist() == pytest.approx([0.9, 0.8, 0.7])


def test_soft_nms_of_nothing() -> None:
    keep, lowered = soft_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert keep.shape == lowered.shape == (0,) and keep.dtype == torch.int64


def test_soft_nms_refuses_unknown_methods() -> None:
    with pytest.raises(ValueError, match="linear or gaussian, not 'hard'"):
        soft_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), method="hard")


def discs(count: int, seed: int = 0, size: tuple[int, int] = (80, 90)) -> tuple:
    """Ellipses, many of which overlap."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    masks = np.zeros((count, *size), np.uint8)
    for mask in masks:
        cy, cx = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        ry, rx = rng.uniform(3, 12, 2)
        mask[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1] = 1
    rles = [mask_util.encode(np.asfortranarray(mask)) for mask in masks]
    scores = torch.from_numpy(rng.random(count)).float()
    return masks.astype(bool), rles, scores, torch.from_numpy(rng.integers(0, 2, count))


def mask_nms_by_loops(masks, scores, classes, threshold):
    kept: list[int] = []
    for index in sorted(range(len(masks)), key=lambda i: (-scores[i].item(), i)):
        for other in kept:
            union = (masks[index] | masks[other]).sum()
            both = (masks[index] & masks[other]).sum()
            if classes[index] == classes[other] and union and both / union > threshold:
                break
        else:
            kept.append(index)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_mask_nms_equals_dense_masks(threshold: float, seed: int) -> None:
    masks, rles, scores, classes = discs(60, seed)
    keep = mask_nms(rles, scores, classes, threshold)
    assert keep.tolist() == mask_nms_by_loops(masks, scores, classes, threshold)
    assert (len(keep) < 60) == (threshold < 1)


def test_mask_nms_keeps_what_only_boxes_share() -> None:
    """Two triangles of one box, a third of which lies on the second."""
    upper = np.triu(np.ones((20, 20), np.uint8), 1)
    masks = [upper, upper.T.copy(), upper.T.copy()]
    rles = [mask_util.encode(np.asfortranarray(mask)) for mask in masks]
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    assert mask_nms(rles, scores, classes, 0.0).tolist() == [0, 1]
    assert mask_nms(rles, scores, torch.tensor([0, 0, 1]), 0.0).tolist() == [0, 1, 2]


def test_mask_nms_of_empty_masks_and_of_none() -> None:
    empty = mask_util.encode(np.zeros((9, 9), np.uint8, order="F"))
    scores = torch.tensor([0.5, 0.5, 0.6])
    assert mask_nms([empty] * 3, scores, torch.zeros(3), 0.5).tolist() == [2, 0, 1]
    assert mask_nms([], torch.zeros(0), torch.zeros(0), 0.5).shape == (0,)


def test_mask_nms_wants_a_score_a_mask() -> None:
    _, rles, scores, classes = discs(3)
    with pytest.raises(ValueError, match="3 masks, 2 scores, 3 classes"):
        mask_nms(rles, scores[:2], classes, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["TEST.SOFT_NMS.METHOD", "hard"], "METHOD is 'hard'.*linear, gaussian"),
        (["TEST.SOFT_NMS.METHOD", "gaussian", "TEST.SOFT_NMS.SIGMA", "0.0"], "SIGMA is 0"),
        (["TEST.MASK_NMS.THRESHOLD", "1.5"], "THRESHOLD is 1.5"),
    ],
)
def test_configs_out_of_range_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(load_config(options=options))


def test_off_by_default() -> None:
    assert SoftNMS.from_config(load_config()) is None


def test_the_settings_come_from_the_config() -> None:
    options = ["TEST.SOFT_NMS.METHOD", "linear", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.4"]
    options += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.1", "TEST.DETECTIONS_PER_IMAGE", "7"]
    assert SoftNMS.from_config(load_config(options=options)) == SoftNMS("linear", 0.5, 0.4, 0.1, 7)


def test_on_instances_it_caps_and_leaves_the_candidates_alone() -> None:
    boxes, scores, classes = candidates(50)
    instances = Instances((99, 99), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
    kept = SoftNMS("gaussian", 0.5, 0.5, 0.05, 8)(instances)
    keep, lowered = soft_nms(boxes, scores, classes, score_threshold=0.05)
    assert torch.equal(kept.scores, lowered[:8])
    assert torch.equal(kept.pred_boxes.tensor, boxes[keep[:8]])
    assert torch.equal(kept.pred_classes, classes[keep[:8]])
    assert torch.equal(instances.scores, scores)


@pytest.mark.parametrize("heads", HEADS)
def test_in_the_model_it_stands_in_for_nms(heads: str) -> None:
    """In its hard limit it finds what the RoI heads' own NMS finds, masks and all."""
    hard = predict(build(heads, "MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.0"))
    options = ["TEST.SOFT_NMS.METHOD", "gaussian", "TEST.SOFT_NMS.SIGMA"]
    limit = predict(build(heads, *options, "1e-12"))
    assert 5 < len(hard) < 200
    assert torch.equal(limit.pred_boxes.tensor, hard.pred_boxes.tensor)
    assert torch.equal(limit.scores, hard.scores)
    assert torch.equal(limit.pred_classes, hard.pred_classes)
    assert limit.pred_masks.rles == hard.pred_masks.rles

    model = build(heads, *options, "0.5")
    soft = predict(model)
    assert len(hard) < len(soft) <= 200 and isinstance(soft.pred_masks, RLEMasks)
    assert model.roi_heads.mask_on
    assert torch.equal(soft.scores, soft.scores.sort(descending=True).values)


def test_boxes_that_are_given_are_not_thinned_out() -> None:
    model = build("StandardROIHeads", "TEST.SOFT_NMS.METHOD", "gaussian")
    given = Instances((64, 80), pred_boxes=Boxes(torch.tensor([[4.0, 4, 30, 30]] * 3)))
    given.pred_classes, given.scores = torch.zeros(3, dtype=torch.int64), torch.ones(3)
    image = torch.zeros(3, 64, 80)
    with torch.no_grad():
        (answer,) = model.inference([{"image": image}], [given], do_postprocess=False)
    assert len(answer) == 3 and torch.equal(answer.scores, torch.ones(3))


@pytest.mark.parametrize("method", ["", "linear"])
def test_mask_nms_in_the_model(method: str) -> None:
    options = ["MODEL.ROI_HEADS.NMS_THRESH_TEST", "1.0", "TEST.SOFT_NMS.METHOD", method]
    everything = predict(build("StandardROIHeads", *options))
    model = build("StandardROIHeads", *options, "TEST.MASK_NMS.THRESHOLD", "0.3")
    thinned = predict(model)
    keep = mask_nms_by_loops(
        [mask.numpy() for mask in everything.pred_masks],
        everything.scores,
        everything.pred_classes,
        0.3,
    )
    assert 0 < len(keep) < len(everything)
    assert thinned.pred_masks.rles == [everything.pred_masks.rles[i] for i in keep]
    assert torch.equal(thinned.scores, everything.scores[keep])


def test_a_model_without_masks() -> None:
    model = build(
        "StandardROIHeads",
        *["MODEL.MASK_ON", "False", "TEST.SOFT_NMS.METHOD", "linear"],
        *["TEST.MASK_NMS.THRESHOLD", "0.5"],
    )
    answer = predict(model)
    assert len(answer) and not answer.has("pred_masks")
