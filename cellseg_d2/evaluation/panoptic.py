"""Panoptic quality, AJI and Dice of label maps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .overlaps import InstanceOverlaps, instance_overlaps

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())
"""COCO's."""


@dataclass(frozen=True)
class MatchCounts:
    """What panoptic quality is made of; counts of several images add up.

    Attributes:
        tp: matched pairs.
        fp: predicted instances without a match.
        fn: ground-truth instances without a match.
        iou: sum of the matched pairs' IoU.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou: float = 0.0

    def __add__(self, other: MatchCounts) -> MatchCounts:
        return MatchCounts(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou + other.iou
        )

    @property
    def dq(self) -> float:
        """Detection quality (Kirillov's RQ): the F1 score, in [0, 1]; NaN where nothing is."""
        instances = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / instances if instances else float("nan")

    @property
    def sq(self) -> float:
        """Segmentation quality: the matches' mean IoU; 0 without a match, NaN where nothing is."""
        if self.tp == 0:
            return self.dq
        return self.iou / self.tp

    @property
    def pq(self) -> float:
        """Panoptic quality: DQ times SQ."""
        return self.dq * self.sq

    def scores(self) -> dict[str, float]:
        """``PQ``, ``SQ`` and ``DQ`` in percent."""
        return {"PQ": 100 * self.pq, "SQ": 100 * self.sq, "DQ": 100 * self.dq}


def panoptic_quality(
    gt: np.ndarray, pred: np.ndarray, *, iou_threshold: float = 0.5
) -> dict[str, float]:
    """Panoptic quality of one label map against another, whatever the instances' classes.

    PQ = DQ · SQ with DQ = TP / (TP + FP/2 + FN/2) and SQ = the mean IoU of the matched pairs
    (Kirillov et al., Panoptic Segmentation, CVPR 2019). It does not depend on the ids.

    Args:
        gt: (H, W) of any integer dtype, ids from 1 to 2**31 - 1, with gaps or without; 0 is
            background.
        pred: (H, W), as ``gt``.
        iou_threshold: a pair is matched above it; in [.5, 1).

    Returns:
        ``PQ``, ``SQ`` and ``DQ`` in percent, and the counts ``TP``, ``FP`` and ``FN``. All three
        are 0 where only one of the maps is empty, NaN where both are.

    Raises:
        TypeError: for a dtype that is not an integer one.
        ValueError: for maps of different shapes, or an id or threshold out of range.
    """
    counts = match_counts(instance_overlaps(gt, pred), iou_threshold)
    return {**counts.scores(), "TP": counts.tp, "FP": counts.fp, "FN": counts.fn}


def match_counts(overlaps: InstanceOverlaps, iou_threshold: float = 0.5) -> MatchCounts:
    """Count what is matched (``InstanceOverlaps.matches``) and what is not."""
    ious = overlaps.ious[overlaps.matches(iou_threshold)]
    tp = len(ious)
    return MatchCounts(tp, len(overlaps.pred) - tp, len(overlaps.gt) - tp, float(ious.sum()))


def aggregated_jaccard_index(overlaps: InstanceOverlaps) -> float:
    """Aggregated Jaccard index (Kumar et al., IEEE TMI 2017), as HoVer-Net's evaluation has it.

    Each ground-truth instance goes with the prediction of the highest IoU, which may go with
    several; of equal IoUs with the one that begins first. The sum of these intersections, over the
    sum of these unions, of the ground truth that nothing overlaps, and of the predictions that go
    with none.

    Returns:
        In [0, 1]; 0 where only one of the maps is empty, NaN where both are.
    """
    # Ascending by ground truth and, within one, descending by IoU: the first of each is its best.
    order = np.lexsort((overlaps.pred_index, -overlaps.ious, overlaps.gt_index))
    paired, first = np.unique(overlaps.gt_index[order], return_index=True)
    best = order[first]
    used = np.zeros(len(overlaps.pred), dtype=bool)
    used[overlaps.pred_index[best]] = True
    union = (
        overlaps.unions[best].sum()
        + np.delete(overlaps.gt.areas, paired).sum()
        + overlaps.pred.areas[~used].sum()
    )
    return float(overlaps.intersections[best].sum() / union) if union else float("nan")


def foreground_dice(overlaps: InstanceOverlaps) -> float:
    """Dice coefficient of foreground against background (HoVer-Net's "Dice 1").

    Returns:
        In [0, 1]; 0 where only one of the maps is empty, NaN where both are.
    """
    total = overlaps.gt.areas.sum() + overlaps.pred.areas.sum()
    return float(2 * overlaps.intersections.sum() / total) if total else float("nan")


def counts_over_iou(
    overlaps: InstanceOverlaps, thresholds: Iterable[float] = IOU_THRESHOLDS
) -> list[MatchCounts]:
    """``match_counts`` at each of several IoU thresholds."""
    return [match_counts(overlaps, threshold) for threshold in thresholds]
