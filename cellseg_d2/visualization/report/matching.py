"""Which predictions are right, in a way that holds at every score threshold at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...structures.run_decoding import decode_runs
from ...structures.run_sets import areas, intersection_areas, tight_boxes

IOU_THRESHOLD = 0.5
STEPS = 100
"""Score thresholds are 0, .01, … 1, the steps of the page's slider."""


@dataclass(frozen=True)
class Tallies:
    """How many predictions are right and wrong, by class and score.

    Attributes:
        tp: (C, 101) int64, predictions with a match whose score lies from step / 100 up to, and
            without, the next one.
        fp: (C, 101) int64, those without.
        gt: (C,) int64, instances of the ground truth.
    """

    tp: np.ndarray
    fp: np.ndarray
    gt: np.ndarray

    def __add__(self, other: Tallies) -> Tallies:
        return Tallies(self.tp + other.tp, self.fp + other.fp, self.gt + other.gt)


def match_predictions(
    annotations: Sequence[dict[str, Any]],
    predictions: Sequence[dict[str, Any]],
    image_size: tuple[int, int],
    iou_threshold: float = IOU_THRESHOLD,
) -> np.ndarray:
    """Pair one image's predictions with its ground truth, as COCO's evaluation does.

    Prediction by prediction, the best score first, each takes the instance of its class that it
    overlaps best, among those not taken yet. A pair so depends on predictions of higher scores
    only: it is the same at every score threshold that leaves the prediction in.

    Args:
        annotations: N dicts with ``category_id`` and ``segmentation`` (compressed RLE).
        predictions: M dicts with ``category_id``, ``score`` and ``segmentation``; of equal scores
            the earlier one comes first.
        image_size: height and width in pixels.
        iou_threshold: the least IoU of a pair.

    Returns:
        (M,) int64, the index of each prediction's instance, or -1.
    """
    matches = np.full(len(predictions), -1, np.int64)
    both = [*annotations, *predictions]
    runs = decode_runs([item["segmentation"] for item in both], image_size)
    classes = np.array([item["category_id"] for item in both], np.int64)
    boxes, sizes = tight_boxes(runs), areas(runs)
    n = len(annotations)

    near = classes[n:, None] == classes[:n]
    for axis in (0, 1):
        near &= boxes[n:, axis, None] < boxes[:n, axis + 2]
        near &= boxes[:n, axis] < boxes[n:, axis + 2, None]
    pred, gt = np.nonzero(near)
    shared = intersection_areas(runs, n + pred, gt)
    ious = shared / (sizes[n + pred] + sizes[gt] - shared)
    enough = ious >= iou_threshold
    pred, gt, ious = pred[enough], gt[enough], ious[enough]

    scores = np.array([p["score"] for p in predictions], np.float64)
    rank = np.empty(len(scores), np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    taken = np.zeros(n, bool)
    # Of equal overlaps COCO takes the last instance.
    for pair in np.lexsort((-gt, -ious, rank[pred])):
        p, g = pred[pair], gt[pair]
        if matches[p] < 0 and not taken[g]:
            matches[p], taken[g] = g, True
    return matches


def tally(
    annotations: Sequence[dict[str, Any]],
    predictions: Sequence[dict[str, Any]],
    matches: np.ndarray,
    num_classes: int,
) -> Tallies:
    """Count one image's predictions; see ``match_predictions`` for the arguments.

    Args:
        annotations: the ground truth.
        predictions: with scores in [0, 1].
        matches: (M,) of the predictions.
        num_classes: C.
    """
    scores = np.array([p["score"] for p in predictions], np.float64)
    classes = np.array([p["category_id"] for p in predictions], np.int64)
    # The very numbers that the slider takes: a score equal to one belongs to it.
    step = np.searchsorted(np.arange(STEPS + 1) / STEPS, scores, side="right") - 1
    counts = np.zeros((2, num_classes, STEPS + 1), np.int64)
    np.add.at(counts, ((matches < 0).astype(np.int64), classes, step), 1)
    truth = np.array([a["category_id"] for a in annotations], np.int64)
    return Tallies(counts[0], counts[1], np.bincount(truth, minlength=num_classes))
