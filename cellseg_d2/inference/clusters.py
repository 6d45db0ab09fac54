"""Which masks are the same cell, and the mask they vote for: on run lengths, without a bitmap.

A cluster holds how much weight each pixel has as a step function along the image's column-major
order. To add a mask is to add its steps, to fuse is to cut the function at half the weight.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..structures.run_sets import tight_boxes
from ..structures.runs import PixelRuns

# Weights are whole numbers, so that their sums are exact and half of them is where it should be.
_WEIGHT_OF_ONE = 2**30


def cluster_masks(
    runs: PixelRuns, classes: np.ndarray, scores: np.ndarray, threshold: float
) -> tuple[np.ndarray, PixelRuns]:
    """Group masks of one class that overlap, the best first.

    Each mask joins the cluster whose fused mask has the largest IoU with it, of equal ones the
    earlier, if that is ``threshold`` or more. A cluster's fused mask is brought up to date with
    each mask that joins: the pixels that members of at least half of the scores' sum hold. It
    always has a pixel, since a mask that joins shares one with it, which keeps its majority.

    Args:
        runs: N masks, none of them empty, best score first.
        classes: (N,) integers; masks of different classes are never grouped.
        scores: (N,) in (0, 1], falling.
        threshold: IoU in (0, 1].

    Returns:
        (N,) int64, the cluster of each mask, numbered by class and then by their first masks; and
        the fused masks in that order.
    """
    cluster_of = np.zeros(len(runs), dtype=np.int64)
    extents = tight_boxes(runs)
    fused: list[tuple[np.ndarray, np.ndarray]] = []
    weights = np.maximum(np.rint(scores * _WEIGHT_OF_ONE).astype(np.int64), 1)
    for one in np.unique(classes):
        members = np.flatnonzero(classes == one)
        clusters = _Clusters(len(members))
        for index in members:
            piece = slice(runs.offsets[index], runs.offsets[index + 1])
            found = clusters.add(
                runs.starts[piece],
                runs.ends[piece],
                extents[index],
                int(weights[index]),
                threshold,
            )
            cluster_of[index] = len(fused) + found
        fused += clusters.masks()
    nothing = np.zeros(0, dtype=np.int64)
    return cluster_of, PixelRuns(
        np.concatenate([nothing, *(starts for starts, _ in fused)]),
        np.concatenate([nothing, *(ends for _, ends in fused)]),
        np.cumsum([0, *(len(starts) for starts, _ in fused)]),
        runs.image_size,
    )


class _Clusters:
    """The clusters of one class.

    Args:
        capacity: the most clusters there can be.
    """

    def __init__(self, capacity: int) -> None:
        self.clusters: list[_Cluster] = []
        # Of all members of each cluster: x0, y0, x1, y1.
        self.extents = np.zeros((4, capacity), dtype=np.int64)

    def masks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the fused masks, as starts and ends of runs."""
        return ((cluster.starts, cluster.ends) for cluster in self.clusters)

    def add(
        self,
        starts: np.ndarray,
        ends: np.ndarray,
        extent: np.ndarray,
        weight: int,
        threshold: float,
    ) -> int:
        """Add a mask to the cluster it belongs to, or to a new one; return the cluster's index."""
        count = len(self.clusters)
        x0, y0, x1, y1 = self.extents[:, :count]
        near = np.flatnonzero(
            (x0 < extent[2]) & (x1 > extent[0]) & (y0 < extent[3]) & (y1 > extent[1])
        )
        area = int((ends - starts).sum())
        best, best_iou = count, 0.0
        for index in near.tolist():
            iou = self.clusters[index].iou(starts, ends, area)
            if iou >= threshold and iou > best_iou:
                best, best_iou = index, iou
        if best == count:
            self.clusters.append(_Cluster(starts, ends, area, weight))
            self.extents[:, count] = extent
            return count
        self.clusters[best].vote(starts, ends, weight)
        self.extents[:2, best] = np.minimum(self.extents[:2, best], extent[:2])
        self.extents[2:, best] = np.maximum(self.extents[2:, best], extent[2:])
        return best


class _Cluster:
    """The votes of some masks on each pixel, and the mask that has half of them.

    Attributes:
        starts: first positions of the fused mask's runs.
        ends: one past their last positions.
    """

    def __init__(self, starts: np.ndarray, ends: np.ndarray, area: int, weight: int) -> None:
        self.starts, self.ends, self.area = starts, ends, area
        self.total = weight
        self.positions, self.steps = _steps(starts, ends, weight)

    def iou(self, starts: np.ndarray, ends: np.ndarray, area: int) -> float:
        """Return the IoU of the fused mask and another of ``area`` pixels."""
        if starts[0] >= self.ends[-1] or self.starts[0] >= ends[-1]:
            return 0.0
        # Pixels of the fused mask before a position: whole runs, and a part of the last.
        covered = np.cumsum(self.ends - self.starts)
        bounds = np.concatenate([starts, ends])
        run = np.searchsorted(self.starts, bounds, side="right") - 1
        before = covered[run] - np.maximum(self.ends[run] - bounds, 0)
        before[run < 0] = 0
        shared = int(before[len(starts) :].sum() - before[: len(starts)].sum())
        return shared / (area + self.area - shared)

    def vote(self, starts: np.ndarray, ends: np.ndarray, weight: int) -> None:
        """Count a mask in, and fuse anew."""
        positions, steps = _steps(starts, ends, weight)
        positions = np.concatenate([self.positions, positions])
        order = np.argsort(positions, kind="stable")
        self.positions = positions[order]
        self.steps = np.concatenate([self.steps, steps])[order]
        self.total += weight
        # Where several steps are at one position, the last of the sums holds.
        is_last = np.append(self.positions[1:] != self.positions[:-1], True)
        held = 2 * np.cumsum(self.steps)[is_last] >= self.total
        edges = self.positions[is_last][np.flatnonzero(np.diff(held, prepend=False))]
        self.starts, self.ends = edges[0::2], edges[1::2]
        self.area = int((self.ends - self.starts).sum())


def _steps(starts: np.ndarray, ends: np.ndarray, weight: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a mask's votes begin and end, and by how much they change the sum there; ascending."""
    positions = np.stack([starts, ends], axis=1).ravel()
    steps = np.full(len(positions), weight, dtype=np.int64)
    steps[1::2] = -weight
    return positions, steps
