"""Fusion against a plain loop on dense masks, and by hand; mask NMS against its own module."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Boxes, Instances

from cellseg_d2.inference.fusion import fuse_answers, merge_answers
from cellseg_d2.modeling import mask_nms
from cellseg_d2.structures import RLEMasks

SIZE = (40, 50)


def answer(masks, scores, classes=None, boxes=None) -> Instances:
    """An answer of dense masks (N, H, W), with tight boxes where none are given."""
    rles = [mask_util.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    rle_masks = RLEMasks(rles, SIZE)
    tight = rle_masks.get_bounding_boxes()
    return Instances(
        SIZE,
        pred_boxes=tight if boxes is None else Boxes(torch.tensor(boxes).reshape(-1, 4)),
        scores=torch.tensor(scores, dtype=torch.float32),
        pred_classes=torch.tensor(classes if classes is not None else [0] * len(rles)).long(),
        pred_masks=rle_masks,
    )


def disc(y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def dense(instances: Instances) -> np.ndarray:
    return np.array([mask.numpy() for mask in instances.pred_masks]).reshape(-1, *SIZE)


def random_answers(seed: int, answers: int = 4) -> list[Instances]:
    """The same discs of two classes, seen a little differently by each, or not at all."""
    generator = np.random.default_rng(seed)
    cells = generator.uniform([2, 2, 2], [38, 48, 6], (25, 3))
    classes = generator.integers(0, 2, 25)
    seen = []
    for _ in range(answers):
        kept = generator.random(25) < 0.7
        moved = cells[kept] + generator.normal(0, 1, (kept.sum(), 3))
        masks = [disc(*cell) for cell in moved]
        # Some scores are equal.
        scores = np.round(generator.uniform(0.05, 1, len(masks)), 1)
        seen.append(answer(masks, scores, classes[kept]))
    return seen


def fuse_by_loops(answers: list[Instances], threshold: float) -> list[tuple]:
    """Weighted boxes fusion as its paper describes it, with masks: every mask a bitmap."""
    cells = [
        (float(s), int(c), mask, box.astype(np.float64))
        for a in answers
        for s, c, mask, box in zip(
            a.scores, a.pred_classes, dense(a), a.pred_boxes.tensor.numpy(), strict=True
        )
        if mask.any() and s > 0
    ]
    clusters: list[dict] = []
    for score, category, mask, box in sorted(cells, key=lambda cell: -cell[0]):
        best, best_iou = None, 0.0
        for cluster in clusters:
            iou = (mask & cluster["mask"]).sum() / (mask | cluster["mask"]).sum()
            if cluster["class"] == category and iou >= threshold and iou > best_iou:
                best, best_iou = cluster, iou
        if best is None:
            best = {"class": category, "members": []}
            clusters.append(best)
        best["members"].append((score, mask, box))
        weights = np.array([m[0] for m in best["members"]])
        votes = sum(np.rint(m[0] * 2**30).astype(np.int64) * m[1] for m in best["members"])
        best["mask"] = 2 * votes >= np.rint(weights * 2**30).sum()
        best["box"] = sum(m[0] * m[2] for m in best["members"]) / weights.sum()
        count = len(weights)
        best["score"] = weights.mean() * min(count, len(answers)) / len(answers)
    return [(c["score"], c["class"], c["mask"], c["box"]) for c in clusters]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
def test_fusion_equals_loops_over_bitmaps(seed: int, threshold: float) -> None:
    answers = random_answers(seed)
    fused = fuse_answers(answers, threshold)
    expected = fuse_by_loops(answers, threshold)
    by_mask = {(category, mask.tobytes()): (score, box) for score, category, mask, box in expected}
    assert len(by_mask) == len(expected) == len(fused)
    for index, mask in enumerate(dense(fused)):
        score, box = by_mask[(int(fused.pred_classes[index]), mask.tobytes())]
        assert float(fused.scores[index]) == pytest.approx(score, rel=1e-6)
        assert fused.pred_boxes.tensor[index].tolist() == pytest.approx(box.tolist(), rel=1e-6)
    assert 1 < len(fused) < sum(map(len, answers))
    assert torch.equal(fused.scores, fused.scores.sort(descending=True).values)
    assert (dense(fused).any(axis=(1, 2))).all()


def test_two_boxes_by_hand() -> None:
    """IoU 8x10 / 12x10 = 2/3: box and score are the means weighted by .9 and .6."""
    first = answer([rectangle(0, 0, 10, 10)], [0.9])
    second = answer([rectangle(2, 0, 12, 10)], [0.6])
    fused = fuse_answers([first, second], 0.5)
    assert fused.pred_boxes.tensor.tolist() == [pytest.approx([0.8, 0, 10.8, 10])]
    assert fused.scores.tolist() == pytest.approx([0.75])
    # Only the better one has more than half of the weight.
    assert fused.pred_masks.rles == first.pred_masks.rles
    apart = fuse_answers([first, second], 0.7)
    assert apart.scores.tolist() == pytest.approx([0.45, 0.3])
    assert apart.pred_masks.rles == first.pred_masks.rles + second.pred_masks.rles


def test_scores_of_what_one_two_and_more_than_all_answers_saw() -> None:
    """Of T = 2 answers: one sees a cell (s/2), both see one (mean), one sees one twice (mean)."""
    a, b, c = rectangle(0, 0, 8, 8), rectangle(20, 0, 28, 8), rectangle(0, 20, 8, 28)
    first, second = answer([a, b, c, c], [0.8, 0.4, 0.9, 0.3]), answer([b, c], [0.6, 0.6])
    fused = fuse_answers([first, second], 0.5)
    assert fused.scores.tolist() == pytest.approx([0.6, 0.5, 0.4])
    assert np.array_equal(dense(fused), [c, b, a])


def test_three_discs_vote_by_hand() -> None:
    """Of weights .5, .3, .3 a pixel needs .55: two of three, whichever."""
    discs = [disc(20, x, 8) for x in (18, 20, 22)]
    fused = fuse_answers(
        [answer([d], [s]) for d, s in zip(discs, (0.5, 0.3, 0.3), strict=True)], 0.4
    )
    assert np.array_equal(dense(fused)[0], sum(d.astype(int) for d in discs) >= 2)
    # Of .9, .3, .3 it needs .75: what the first holds, and nothing else.
    fused = fuse_answers(
        [answer([d], [s]) for d, s in zip(discs, (0.9, 0.3, 0.3), strict=True)], 0.4
    )
    assert np.array_equal(dense(fused)[0], discs[0])
    # Of equal weights two of two have half each: all pixels of either.
    fused = fuse_answers([answer([d], [0.7]) for d in discs[:2]], 0.4)
    assert np.array_equal(dense(fused)[0], discs[0] | discs[1])


def test_the_best_match_wins_and_classes_stay_apart() -> None:
    left, right, middle = (rectangle(x, 0, x + 10, 10) for x in (0, 10, 6))
    first = answer([left, right], [0.9, 0.8])
    fused = fuse_answers([first, answer([middle], [0.1])], 0.2)
    # 4/16 with the left one, 6/14 with the right one.
    assert fused.scores.tolist() == pytest.approx([0.45, 0.45])
    assert fused.pred_boxes.tensor[:, 0].sort().values.tolist() == pytest.approx([0, 8.6 / 0.9])
    other = fuse_answers([first, answer([left], [0.9], [1])], 0.5)
    assert len(other) == 3


@pytest.mark.parametrize("method", ["fusion", "nms"])
def test_equal_answers_are_one(method: str) -> None:
    masks = [disc(y, x, 4) for y in (5, 16, 30) for x in (6, 20, 40)]
    one = answer(masks, np.linspace(0.95, 0.1, 9), np.arange(9) % 3)
    merged = merge_answers([one] * 5, method=method, threshold=0.5, max_detections=100)
    assert merged.pred_masks.rles == one.pred_masks.rles
    assert torch.equal(merged.scores, one.scores)
    assert torch.equal(merged.pred_boxes.tensor, one.pred_boxes.tensor)
    assert torch.equal(merged.pred_classes, one.pred_classes)
    assert len(merge_answers([one] * 5, method=method, threshold=0.5, max_detections=4)) == 4


@pytest.mark.parametrize("seed", range(3))
def test_nms_is_mask_nms_over_all(seed: int) -> None:
    answers = random_answers(seed)
    merged = merge_answers(answers, method="nms", threshold=0.3, max_detections=1000)
    cells = Instances.cat(answers)
    cells = cells[torch.from_numpy(dense(cells).any(axis=(1, 2))) & (cells.scores > 0)]
    keep = mask_nms(cells.pred_masks.rles, cells.scores, cells.pred_classes, 0.3)
    assert merged.pred_masks.rles == cells[keep].pred_masks.rles
    assert torch.equal(merged.scores, cells.scores[keep])


@pytest.mark.parametrize("method", ["fusion", "nms"])
def test_the_threshold_itself_is_the_same_cell(method: str) -> None:
    pair = [answer([rectangle(0, 0, 10, 10)], [0.9]), answer([rectangle(0, 0, 10, 5)], [0.8])]
    for threshold, count in ((0.5, 1), (0.51, 2)):
        merged = merge_answers(pair, method=method, threshold=threshold, max_detections=9)
        assert len(merged) == count


@pytest.mark.parametrize("method", ["fusion", "nms"])
def test_nothing_and_cells_without_a_pixel(method: str) -> None:
    none = answer(np.zeros((0, *SIZE), bool), [])
    hollow = answer(np.zeros((2, *SIZE), bool), [0.9, 0.8])
    arguments = {"method": method, "threshold": 0.5, "max_detections": 10}
    for answers in ([none], [none, none], [hollow, none]):
        merged = merge_answers(answers, **arguments)
        assert len(merged) == 0 and merged.image_size == SIZE
        assert merged.pred_boxes.tensor.shape == (0, 4) and len(merged.pred_masks) == 0
    cell = answer([disc(9, 9, 4)], [0.6])
    assert len(merge_answers([hollow, cell], **arguments)) == 1


def test_refusals() -> None:
    one = answer([disc(9, 9, 4)], [0.6])
    other = Instances((9, 9), **one.get_fields())
    for answers, method, threshold, message in (
        ([one], "wbf", 0.5, "fusion or nms, not 'wbf'"),
        ([one], "fusion", 0.0, "not 0"),
        ([one], "nms", 1.5, "not 1.5"),
        ([], "fusion", 0.5, "there is none"),
        ([one, other], "nms", 0.5, "of many"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_answers(answers, method=method, threshold=threshold, max_detections=9)
