"""COCO average precision for dense images, computed by faster-coco-eval.

The cap on detections is an argument with one meaning. Upstream's 100 hides most cells, and any
other value swaps in a slow evaluator whose summary prints -1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

AREA_RANGES = ("all", "small", "medium", "large")
"""COCO's: all, below 32², 32² to 96², above 96² pixels."""


RECALL_POINTS = 101
"""Recall 0, .01, … 1, at which precision is taken."""

THRESHOLDS = 10
"""IoU .50, .55, … .95."""


def coco_scores(
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    predictions: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    iou_type: str,
    max_detections: int,
) -> dict[str, float]:
    """Average precision in percent, as pycocotools defines it.

    On 10 images of 600 cells more than 10 times as fast as pycocotools
    (``tools/benchmark.py evaluation``).

    Args:
        images: dicts with ``id``, ``height`` and ``width``.
        annotations: dicts with ``image_id``, ``category_id`` (from 0), ``bbox`` (x, y, w, h),
            ``area`` in pixels and, for masks, ``segmentation`` (RLE).
        predictions: dicts with ``image_id``, ``category_id`` (from 0), ``score``, and ``bbox`` or
            ``segmentation``.
        class_names: name of each category.
        iou_type: "bbox" or "segm".
        max_detections: of each image and class, the best by score, are counted.

    Returns:
        ``AP`` (mean over IoU .50 to .95), ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, and
        ``AP-<class>`` and ``AP50-<class>`` per class. NaN where no ground truth falls into it.
    """
    precision = coco_precision(
        images, annotations, predictions, class_names, iou_type, max_detections
    )
    return summarize_precision(precision, class_names)


def coco_precision(
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    predictions: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    iou_type: str,
    max_detections: int,
) -> np.ndarray:
    """Precision over recall, of which average precision is the mean.

    Args:
        images: see ``coco_scores``, as all of these.
        annotations: see there.
        predictions: see there.
        class_names: see there.
        iou_type: see there.
        max_detections: see there.

    Returns:
        (10, 101, C, 4) float64 in [0, 1] by IoU threshold, recall, class and ``AREA_RANGES``; -1
        where no ground truth falls into it.
    """
    if not predictions:  # which loadRes refuses
        return _precision_of_nothing(annotations, len(class_names))
    ground_truth = {
        "images": [dict(image) for image in images],
        # COCO's matching takes annotation id 0 for "unmatched".
        "annotations": [
            {"id": i, "iscrowd": 0, **annotation} for i, annotation in enumerate(annotations, 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(class_names)],
    }
    # loadRes would take the area of a mask's prediction from its box where both are there.
    unused = "bbox" if iou_type == "segm" else "segmentation"
    results = [{k: v for k, v in p.items() if k != unused} for p in predictions]
    gt = COCO(ground_truth)
    evaluation = COCOeval_faster(gt, gt.loadRes(results), iou_type, print_function=_say_nothing)
    evaluation.params.maxDets = [max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., -1]


def summarize_precision(precision: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Average ``coco_precision``'s answer to ``coco_scores``' one."""

    def mean(values: np.ndarray) -> float:
        values = values[values > -1]
        return 100 * float(values.mean()) if values.size else float("nan")

    scores = {
        "AP": mean(precision[..., 0]),
        "AP50": mean(precision[0, ..., 0]),
        "AP75": mean(precision[5, ..., 0]),
    }
    for i, suffix in enumerate("sml", start=1):
        scores[f"AP{suffix}"] = mean(precision[..., i])
    for k, name in enumerate(class_names):
        scores[f"AP-{name}"] = mean(precision[:, :, k, 0])
        scores[f"AP50-{name}"] = mean(precision[0, :, k, 0])
    return scores


def _say_nothing(*words: object) -> None:
    # The library reports each of its steps; the scores are logged once, at the end.
    pass


def _precision_of_nothing(annotations: Sequence[dict[str, Any]], classes: int) -> np.ndarray:
    # Precision is 0 wherever there is ground truth, by class and area range.
    precision = np.full((THRESHOLDS, RECALL_POINTS, classes, len(AREA_RANGES)), -1.0)
    limits = [(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)]
    for annotation, (i, (low, high)) in itertools.product(annotations, enumerate(limits)):
        if low <= annotation["area"] <= high:
            precision[:, :, annotation["category_id"], i] = 0.0
    return precision
