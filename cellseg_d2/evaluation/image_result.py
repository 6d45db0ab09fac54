"""One image's cells against its ground truth, as counts that add up over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..structures.distinct import distinct_instances
from ..structures.flatten import FlatLabels, flatten_masks
from ..structures.run_decoding import decode_runs
from ..structures.run_sets import areas
from .confusion import confusion_matrix
from .detection import match_centroids
from .overlaps import InstanceOverlaps, instance_overlaps
from .panoptic import (
    MatchCounts,
    aggregated_jaccard_index,
    counts_over_iou,
    foreground_dice,
    match_counts,
)


@dataclass(frozen=True)
class ImageResult:
    """What the panoptic scores are computed from.

    Attributes:
        image_id: of the image.
        overall: matches whatever the classes.
        by_class: matches within each of the C classes.
        over_iou: matches whatever the classes at each of ``panoptic.IOU_THRESHOLDS``.
        aji: aggregated Jaccard index in [0, 1], NaN where there are no cells at all.
        dice: of the foreground, likewise.
        confusion: (C + 1, C + 1), pairs matched by IoU; see ``confusion_matrix``.
        centroid_confusion: (C + 1, C + 1), pairs matched by centroid.
        covered: ground-truth instances that others cover wholly, in no count but ``by_class``.
        dropped: predictions that better ones cover for the most part, in no count.
    """

    image_id: int
    overall: MatchCounts
    by_class: tuple[MatchCounts, ...]
    over_iou: tuple[MatchCounts, ...]
    aji: float
    dice: float
    confusion: np.ndarray
    centroid_confusion: np.ndarray
    covered: int
    dropped: int


@dataclass(frozen=True)
class ImageLabels:
    """One image's cells, each pixel in at most one of the ground truth and one predicted.

    Attributes:
        gt: the ground truth's label map.
        pred: the predictions'.
        dropped: predictions that better ones cover for the most part, and that are not in ``pred``.
        overlaps: of the N and M instances of the two maps; the arrays below are in its order.
        gt_classes: (N,) int64 from 0.
        pred_classes: (M,) int64 from 0.
        pred_scores: (M,) float64.
    """

    gt: FlatLabels
    pred: FlatLabels
    dropped: int
    overlaps: InstanceOverlaps
    gt_classes: np.ndarray
    pred_classes: np.ndarray
    pred_scores: np.ndarray


def compare_image(
    record: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    num_classes: int,
    score_threshold: float,
) -> ImageResult:
    """Measure one image's predictions.

    Predictions are flattened over all classes: each pixel belongs to at most one, and what better
    ones cover for the most part is left out (``distinct_instances``). Ground truth has
    no scores; where its instances overlap, as those of different classes may, the later one in the
    annotations' order is on top, as a polygon painted later is. Within one class, though, its
    instances are compared whole, whatever those of other classes cover.

    Args:
        record: a data-set dict with ``image_id``, ``height``, ``width`` and ``annotations``
            (``category_id`` from 0, ``segmentation`` as compressed RLE).
        predictions: dicts with ``category_id``, ``score`` and ``segmentation``.
        num_classes: C.
        score_threshold: predictions of a lower score are left out.
    """
    annotations = record["annotations"]
    maps = flatten_image(record, predictions, score_threshold)
    overlaps, gt_classes, pred_classes = maps.overlaps, maps.gt_classes, maps.pred_classes

    matched = overlaps.matches()
    near = match_centroids(overlaps.gt.centroids, overlaps.pred.centroids)
    return ImageResult(
        record["image_id"],
        match_counts(overlaps),
        tuple(
            match_counts(_within_class(category, maps, annotations))
            for category in range(num_classes)
        ),
        tuple(counts_over_iou(overlaps)),
        aggregated_jaccard_index(overlaps),
        foreground_dice(overlaps),
        confusion_matrix(
            gt_classes,
            pred_classes,
            overlaps.gt_index[matched],
            overlaps.pred_index[matched],
            num_classes,
        ),
        confusion_matrix(gt_classes, pred_classes, *near, num_classes),
        maps.gt.dropped,
        maps.dropped,
    )


def shown_predictions(
    predictions: Sequence[dict[str, Any]], image_size: tuple[int, int]
) -> list[dict[str, Any]]:
    """Return one image's predictions without those that label maps leave out.

    These are what better predictions cover for the most part, as a cell answered with as two
    classes (``distinct_instances``). That depends on predictions of higher scores only, and so is
    the same at every score threshold.

    Args:
        predictions: dicts with ``score`` and ``segmentation`` (compressed RLE).
        image_size: height and width in pixels.

    Returns:
        In the order of the given ones.
    """
    scores = [p["score"] for p in predictions]
    kept = distinct_instances([p["segmentation"] for p in predictions], scores, image_size)
    return [predictions[index] for index in kept]


def flatten_image(
    record: dict[str, Any], predictions: Sequence[dict[str, Any]], score_threshold: float
) -> ImageLabels:
    """Make label maps of one image's ground truth and predictions; see ``compare_image``."""
    size = (record["height"], record["width"])
    annotations = record["annotations"]
    sure = [p for p in predictions if p["score"] >= score_threshold]
    shown = shown_predictions(sure, size)
    gt = _flatten_ground_truth(annotations, size)
    pred = flatten_masks([p["segmentation"] for p in shown], [p["score"] for p in shown], size)
    overlaps = instance_overlaps(gt.label_map, pred.label_map)
    gt_kept, pred_kept = gt.kept[overlaps.gt.ids - 1], pred.kept[overlaps.pred.ids - 1]
    scores = np.array([p["score"] for p in shown], dtype=np.float64)
    return ImageLabels(
        gt,
        pred,
        len(sure) - len(shown) + pred.dropped,
        overlaps,
        _classes(annotations)[gt_kept],
        _classes(shown)[pred_kept],
        scores[pred_kept],
    )


def _within_class(
    category: int, maps: ImageLabels, annotations: Sequence[dict[str, Any]]
) -> InstanceOverlaps:
    own = [a for a in annotations if a["category_id"] == category]
    chosen = maps.gt_classes == category
    pred_map = maps.pred.label_map
    whole_areas = areas(decode_runs([a["segmentation"] for a in own], pred_map.shape))
    if whole_areas.sum() == maps.overlaps.gt.areas[chosen].sum():
        return maps.overlaps.select(chosen, maps.pred_classes == category)
    # Other classes cover some of it.
    layer = _flatten_ground_truth(own, pred_map.shape)
    whole = instance_overlaps(layer.label_map, pred_map)
    # The predictions are the same, in the same order.
    return whole.select(np.ones(len(whole.gt), dtype=bool), maps.pred_classes == category)


def _flatten_ground_truth(
    annotations: Sequence[dict[str, Any]], size: tuple[int, ...]
) -> FlatLabels:
    height, width = size
    rles = [a["segmentation"] for a in annotations]
    return flatten_masks(rles, np.arange(len(rles)), (height, width))


def _classes(items: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([item["category_id"] for item in items], dtype=np.int64)
