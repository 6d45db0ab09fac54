"""How the instances of two label maps overlap: all pairs from one pass over the pixels.

Instances are numbered here by where they begin, row by row, and not by their ids. So nothing that
is computed from these numbers, down to how ties are broken, changes when instances are relabelled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Side:
    """The N instances of one of the two label maps, in the order of their first pixels.

    Attributes:
        ids: (N,) int64, as they are in the label map.
        areas: (N,) int64, pixels.
        centroids: (N, 2) float64, mean x and y of the pixels' positions (pixel 0 is at 0).
    """

    ids: np.ndarray
    areas: np.ndarray
    centroids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class InstanceOverlaps:
    """The pairs of a ground-truth and a predicted instance that share a pixel.

    Attributes:
        gt: the N instances of the ground truth.
        pred: the M instances of the prediction.
        gt_index: (P,) int64, from 0 to N - 1, ascending, of each pair.
        pred_index: (P,) int64, from 0 to M - 1, ascending within one of the ground truth.
        intersections: (P,) int64, pixels.
    """

    gt: Side
    pred: Side
    gt_index: np.ndarray
    pred_index: np.ndarray
    intersections: np.ndarray

    @property
    def unions(self) -> np.ndarray:
        """Pixels of each pair's union, (P,) int64."""
        areas = self.gt.areas[self.gt_index] + self.pred.areas[self.pred_index]
        return areas - self.intersections

    @property
    def ious(self) -> np.ndarray:
        """Intersection over union of each pair, (P,) float64 in (0, 1]."""
        return self.intersections / self.unions

    def matches(self, threshold: float = 0.5) -> np.ndarray:
        """Which pairs are matched: those with an IoU above the threshold.

        From .5 on no instance is in two such pairs, as those of one map do not overlap (Kirillov et
        al., Panoptic Segmentation, 2019).

        Args:
            threshold: in [.5, 1).

        Returns:
            (P,) bool.

        Raises:
            ValueError: for a threshold below .5, which may match an instance twice.
        """
        if not 0.5 <= threshold < 1:
            raise ValueError(f"IoU thresholds lie in [0.5, 1), not at {threshold}")
        return self.ious > threshold

    def select(self, gt: np.ndarray, pred: np.ndarray) -> InstanceOverlaps:
        """Leave out instances, as if they were background.

        Args:
            gt: (N,) bool, those of the ground truth to keep.
            pred: (M,) bool, those of the prediction to keep.
        """
        pairs = gt[self.gt_index] & pred[self.pred_index]
        return InstanceOverlaps(
            _select(self.gt, gt),
            _select(self.pred, pred),
            (np.cumsum(gt) - 1)[self.gt_index[pairs]],
            (np.cumsum(pred) - 1)[self.pred_index[pairs]],
            self.intersections[pairs],
        )


def instance_overlaps(gt: np.ndarray, pred: np.ndarray) -> InstanceOverlaps:
    """Find the overlaps of the instances of two label maps.

    The pixels are read once, to find where either map changes along the rows; all else is
    arithmetic on those runs. 1,000 cells against 1,000 in 1000×1000 pixels take some 20 ms
    (``tools/benchmark.py evaluation``).

    Args:
        gt: (H, W) of any integer dtype; 0 is background, each other value, from 1 to 2**31 - 1,
            one instance. Ids need not be contiguous.
        pred: (H, W), as ``gt``; the dtypes may differ.

    Raises:
        TypeError: for a dtype that is not an integer one.
        ValueError: for maps of different shapes or not of two dimensions, or an id out of range.
    """
    for name, label_map in (("gt", gt), ("pred", pred)):
        if label_map.dtype.kind not in "iu":
            raise TypeError(f"{name}: a label map has an integer dtype, not {label_map.dtype}")
    if gt.ndim != 2 or gt.shape != pred.shape:
        raise ValueError(f"label maps of one shape (H, W), not {gt.shape} and {pred.shape}")
    width = max(1, gt.shape[1])
    a, b = gt.ravel(), pred.ravel()
    begins = np.ones(len(a), dtype=bool)
    np.logical_or(a[1:] != a[:-1], b[1:] != b[:-1], out=begins[1:])
    begins[::width] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=len(a))
    gt_side, gt_of_run = _side(a[starts], starts, lengths, width)
    pred_side, pred_of_run = _side(b[starts], starts, lengths, width)

    both = (gt_of_run >= 0) & (pred_of_run >= 0)
    keys = gt_of_run[both] * max(1, len(pred_side)) + pred_of_run[both]
    pairs, inverse = np.unique(keys, return_inverse=True)
    gt_index, pred_index = np.divmod(pairs, max(1, len(pred_side)))
    intersections = np.bincount(inverse, lengths[both], len(pairs)).astype(np.int64)
    return InstanceOverlaps(gt_side, pred_side, gt_index, pred_index, intersections)


def _side(
    ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, width: int
) -> tuple[Side, np.ndarray]:
    """Sum up the runs of one map's instances.

    Args:
        ids: (R,) of the runs, each within one row.
        starts: (R,) their first positions, row-major.
        lengths: (R,) in pixels.
        width: of the map.

    Returns:
        The instances, and the one of each run, (R,), -1 for background.
    """
    if len(ids) and not 0 <= ids.min() <= ids.max() < 2**31:
        raise ValueError(f"ids go from 0 to 2**31 - 1, not from {ids.min()} to {ids.max()}")
    foreground = np.flatnonzero(ids)
    found, first, inverse = np.unique(
        ids[foreground].astype(np.int64), return_index=True, return_inverse=True
    )
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    instance = rank[inverse]
    y, x = np.divmod(starts[foreground], width)
    length = lengths[foreground]
    areas, sum_x, sum_y = (
        np.bincount(instance, weights, len(found))
        for weights in (length, (x + (length - 1) / 2) * length, y * length)
    )
    centroids = np.stack([sum_x, sum_y], axis=1) / areas[:, None]
    of_run = np.full(len(ids), -1, dtype=np.int64)
    of_run[foreground] = instance
    return Side(found[order], areas.astype(np.int64), centroids), of_run


def _select(side: Side, keep: np.ndarray) -> Side:
    return replace(side, ids=side.ids[keep], areas=side.areas[keep], centroids=side.centroids[keep])
