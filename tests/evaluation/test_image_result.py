"""One image's comparison: per-class counts against label maps painted class by class."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest

from cellseg_d2.evaluation.image_result import compare_image
from cellseg_d2.evaluation.overlaps import instance_overlaps
from cellseg_d2.evaluation.panoptic import (
    IOU_THRESHOLDS,
    aggregated_jaccard_index,
    foreground_dice,
    match_counts,
)

from .label_maps import discs_and_guesses

SIZE = (160, 200)


def encode(mask: np.ndarray) -> dict:
    return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))


def image_of(masks, classes) -> dict:
    annotations = [
        {"category_id": int(k), "segmentation": encode(mask)}
        for mask, k in zip(masks, classes, strict=True)
    ]
    return {"image_id": 3, "height": SIZE[0], "width": SIZE[1], "annotations": annotations}


def predictions_of(masks, classes, scores) -> list[dict]:
    return [
        {"category_id": int(k), "segmentation": encode(mask), "score": float(score)}
        for mask, k, score in zip(masks, classes, scores, strict=True)
    ]


def square(top: int, left: int, side: int = 10) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize("seed", range(3))
def test_disjoint_instances_equal_their_label_maps(seed: int) -> None:
    gt, pred = discs_and_guesses(seed)
    rng = np.random.default_rng(seed)
    gt_ids, pred_ids = (np.unique(m[m > 0]) for m in (gt, pred))
    gt_classes = np.zeros(200, int)
    gt_classes[gt_ids] = rng.integers(3, size=len(gt_ids))
    pred_classes = np.where(rng.uniform(size=200) < 0.8, gt_classes, rng.integers(3, size=200))
    found = compare_image(
        image_of([gt == i for i in gt_ids], gt_classes[gt_ids]),
        predictions_of(
            [pred == i for i in pred_ids], pred_classes[pred_ids], rng.random(200)[: len(pred_ids)]
        ),
        4,
        0.0,
    )
    whole = instance_overlaps(gt, pred)
    assert (found.image_id, found.covered, found.dropped) == (3, 0, 0)
    assert found.overall == match_counts(whole)
    assert found.over_iou == tuple(match_counts(whole, t) for t in IOU_THRESHOLDS)
    assert found.aji == aggregated_jaccard_index(whole)
    assert found.dice == foreground_dice(whole)
    for k in range(4):
        # Id 0 is of class 0; background stays background.
        own = [np.where(c[m] == k, m, 0) for m, c in ((gt, gt_classes), (pred, pred_classes))]
        assert found.by_class[k] == match_counts(instance_overlaps(*own))
    for confusion in (found.confusion, found.centroid_confusion):
        assert (
            confusion.sum(axis=1)[:4].tolist()
            == np.bincount(gt_classes[gt_ids], minlength=4).tolist()
        )
        assert (
            confusion.sum(axis=0)[:4].tolist()
            == np.bincount(pred_classes[pred_ids], minlength=4).tolist()
        )
    assert found.confusion[:4, :4].sum() == found.overall.tp


def test_classes_that_overlap_in_the_ground_truth() -> None:
    """Class 1 covers one cell of class 0 wholly and cuts another; within class 0 both are whole."""
    masks = [square(0, 0), square(20, 0), square(0, 0, 12), square(20, 6)]
    record = image_of(masks, [0, 0, 1, 1])
    perfect = predictions_of(masks[:2], [0, 0], [0.9, 0.9])
    found = compare_image(record, perfect, 2, 0.5)
    assert found.covered == 1
    assert (found.overall.tp, found.overall.fp, found.overall.fn) == (2, 0, 1)
    assert found.by_class[0].pq == 1
    assert (found.by_class[1].tp, found.by_class[1].fn) == (0, 2)
    # Whatever the classes, the square of 100 meets the one of 144 on top, and 60 of its pixels.
    assert found.overall.iou == pytest.approx(100 / 144 + 60 / 100)
    assert found.confusion.tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 0]]


def test_predictions_below_the_threshold_and_covered_ones() -> None:
    record = image_of([square(0, 0), square(40, 40)], [0, 1])
    predictions = predictions_of(
        [square(0, 0), square(0, 0), square(2, 2, 4), square(40, 40)],
        [0, 1, 0, 1],
        [0.9, 0.8, 0.5, 0.49],
    )
    found = compare_image(record, predictions, 2, 0.5)
    assert found.dropped == 2
    assert (found.overall.tp, found.overall.fp, found.overall.fn) == (1, 0, 1)
    assert found.centroid_confusion.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert compare_image(record, predictions, 2, 0.4).overall.tp == 2


def test_centroids_match_where_masks_do_not() -> None:
    record = image_of([square(0, 0, 30)], [0])
    found = compare_image(record, predictions_of([square(10, 10, 8)], [1], [0.9]), 2, 0.5)
    assert found.confusion.tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert found.centroid_confusion.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_empty_images() -> None:
    nothing = compare_image(image_of([], []), [], 2, 0.5)
    assert np.isnan(nothing.aji) and np.isnan(nothing.dice) and np.isnan(nothing.overall.pq)
    assert not nothing.confusion.any()
    missed = compare_image(image_of([square(0, 0)], [1]), [], 2, 0.5)
    assert missed.by_class[1].fn == 1 and missed.confusion[1, 2] == 1 and missed.aji == 0
    spurious = compare_image(image_of([], []), predictions_of([square(0, 0)], [1], [1]), 2, 0.5)
    assert spurious.by_class[1].fp == 1 and spurious.centroid_confusion[2, 1] == 1


def test_a_cell_answered_twice_counts_once() -> None:
    record = image_of([square(0, 0), square(40, 40)], [0, 1])
    # The second cell as two classes, a pixel apart: no sliver of the worse is left.
    masks = [square(0, 0), square(40, 40), square(41, 40)]
    found = compare_image(record, predictions_of(masks, [0, 0, 1], [0.9, 0.6, 0.7]), 2, 0.5)
    assert (found.overall.tp, found.overall.fp, found.overall.fn) == (2, 0, 0)
    assert found.dropped == 1
    assert [(counts.tp, counts.fp) for counts in found.by_class] == [(1, 0), (1, 0)]
    assert found.centroid_confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
