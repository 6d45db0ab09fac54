"""What becomes of each cell of the ground truth, and how that depends on what cell it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from .image_result import ImageLabels, flatten_image

FOUND, MERGED, SPLIT, MISDRAWN, MISSED = range(5)
FATES = ("found", "merged", "split", "misdrawn", "missed")
"""What becomes of a cell: see ``fates``."""

TOUCHED = 0.2
"""IoU from which on a cell that is not found is misdrawn, and below which it is missed."""

NEIGHBOURHOOD = 50.0
"""Pixels around a cell's centroid within which others' centroids are its neighbours."""


@dataclass(frozen=True)
class Cells:
    """N cells of one side, of one image or several.

    Attributes:
        image: (N,) int64, the image's id.
        category: (N,) int64, class from 0.
        center: (N, 2) float64, centroid's x and y in pixels.
        diameter: (N,) float64, of the disc of the cell's area, in pixels.
        neighbours: (N,) int64, cells of the same side within ``NEIGHBOURHOOD``.
        density: (N,) float64, optical density: the mean of -log10((I + 1) / 256) over the cell's
            pixels and the image's channels; 0 for white, higher for darker stain.
        partner: (N,) int64, class of the cell on the other side that it is matched with; -1 where
            there is none.
        iou: (N,) float64, highest IoU with a cell of the other side, 0 where none touches it.
        fate: (N,) int64, of the ground truth an index of ``FATES``; of predictions ``FOUND`` if
            matched, else ``MISSED``.
        score: (N,) float64, of predictions; NaN for the ground truth.
    """

    image: np.ndarray
    category: np.ndarray
    center: np.ndarray
    diameter: np.ndarray
    neighbours: np.ndarray
    density: np.ndarray
    partner: np.ndarray
    iou: np.ndarray
    fate: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def select(self, which: np.ndarray) -> Cells:
        """Return some of them.

        Args:
            which: (N,) bool, or indices.
        """
        return Cells(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    @staticmethod
    def cat(parts: Sequence[Cells]) -> Cells:
        """Put those of several images together, of at least one."""
        names = [field.name for field in fields(Cells)]
        return Cells(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


def describe_cells(
    record: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    image: np.ndarray,
    score_threshold: float,
) -> tuple[Cells, Cells]:
    """Say what becomes of one image's cells, in the label maps that ``compare_image`` measures.

    Args:
        record: a data-set dict.
        predictions: dicts with ``category_id``, ``score`` and ``segmentation``.
        image: (H, W, C) uint8.
        score_threshold: predictions of a lower score are left out.

    Returns:
        The ground truth's cells and the predicted ones, row by row as their first pixels lie.
    """
    maps = flatten_image(record, predictions, score_threshold)
    overlaps = maps.overlaps
    od = -np.log10((np.arange(256) + 1) / 256)
    density = od[image].mean(axis=2)
    matched = overlaps.matches()
    gt_fate = fates(maps)
    pred_fate = np.full(len(overlaps.pred), MISSED)
    pred_fate[overlaps.pred_index[matched]] = FOUND

    sides = []
    for side, labels, index, other, classes, other_classes, fate, score in (
        (
            overlaps.gt,
            maps.gt.label_map,
            overlaps.gt_index,
            overlaps.pred_index,
            maps.gt_classes,
            maps.pred_classes,
            gt_fate,
            np.full(len(overlaps.gt), np.nan),
        ),
        (
            overlaps.pred,
            maps.pred.label_map,
            overlaps.pred_index,
            overlaps.gt_index,
            maps.pred_classes,
            maps.gt_classes,
            pred_fate,
            maps.pred_scores,
        ),
    ):
        sums = np.bincount(labels.ravel(), density.ravel(), minlength=labels.max(initial=0) + 1)
        partner = np.full(len(side), -1)
        partner[index[matched]] = other_classes[other[matched]]
        best = np.zeros(len(side))
        np.maximum.at(best, index, overlaps.ious)
        sides.append(
            Cells(
                np.full(len(side), record["image_id"]),
                classes,
                side.centroids,
                2 * np.sqrt(side.areas / np.pi),
                _count_neighbours(side.centroids),
                sums[side.ids] / side.areas,
                partner,
                best,
                fate,
                score,
            )
        )
    return sides[0], sides[1]


def fates(maps: ImageLabels) -> np.ndarray:
    """Say what becomes of each cell of the ground truth, whatever its class.

    The first that holds of: *found*, a prediction has an IoU above .5 with it; *merged*, one covers
    more than half of it and more than half of another cell too; *split*, two or more lie within it
    by more than half of their own areas; *misdrawn*, one has an IoU of at least ``TOUCHED``;
    *missed*.

    Returns:
        (N,) int64, indices of ``FATES``.
    """
    overlaps = maps.overlaps
    gt, pred, shared = overlaps.gt_index, overlaps.pred_index, overlaps.intersections
    count = len(overlaps.gt)
    covers = 2 * shared > overlaps.gt.areas[gt]
    covered = np.bincount(pred[covers], minlength=len(overlaps.pred))
    merged = np.zeros(count, dtype=bool)
    merged[gt[covers & (covered[pred] > 1)]] = True
    within = 2 * shared > overlaps.pred.areas[pred]
    pieces = np.bincount(gt[within], minlength=count)
    best = np.zeros(count)
    np.maximum.at(best, gt, overlaps.ious)
    fate = np.full(count, MISSED)
    fate[best >= TOUCHED] = MISDRAWN
    fate[pieces > 1] = SPLIT
    fate[merged] = MERGED
    fate[gt[overlaps.matches()]] = FOUND
    return fate


def tabulate_strata(
    gt: Cells, pred: Cells, gt_stratum: np.ndarray, pred_stratum: np.ndarray, count: int
) -> list[dict[str, float]]:
    """Measure each of several groups of cells.

    Args:
        gt: the ground truth's N cells.
        pred: the M predicted ones.
        gt_stratum: (N,) int64, the group of each, from 0 to ``count`` - 1.
        pred_stratum: (M,) int64.
        count: of groups.

    Returns:
        For each group ``cells`` (of the ground truth); in percent of these ``recall`` and the other
        ``FATES``; of those found ``named`` (given their class) and ``IoU`` (the mean); and
        ``precision``, in percent of the predictions in the group. NaN where there are none.
    """
    rows = []
    for stratum in range(count):
        own, answers = gt.select(gt_stratum == stratum), pred.select(pred_stratum == stratum)
        found = own.fate == FOUND
        shares = np.bincount(own.fate, minlength=len(FATES))
        row = {
            "cells": len(own),
            "recall": _percent(shares[FOUND], len(own)),
            "precision": _percent((answers.fate == FOUND).sum(), len(answers)),
            "IoU": _percent(own.iou[found].sum(), found.sum()),
            "named": _percent((own.partner == own.category)[found].sum(), found.sum()),
        }
        row |= {name: _percent(shares[k], len(own)) for k, name in enumerate(FATES) if k != FOUND}
        rows.append(row)
    return rows


def quartile_edges(values: np.ndarray) -> np.ndarray:
    """Return the values that part others into four groups of about the same size.

    Args:
        values: (N,), at least one.

    Returns:
        Up to three of three digits each, ascending. Fewer where many values are alike, so that no
        group is empty: what is below the first, from each to the next, from the last on.
    """
    edges: list[float] = []
    for quartile in np.percentile(values, [25, 50, 75]):
        edge = float(f"{quartile:.3g}")
        last = edges[-1] if edges else -np.inf
        if ((values >= last) & (values < edge)).any() and (values >= edge).any():
            edges.append(edge)
    return np.array(edges)


def _percent(part: float, whole: int) -> float:
    return 100 * float(part) / whole if whole else float("nan")


def _count_neighbours(centers: np.ndarray) -> np.ndarray:
    if len(centers) == 0:
        return np.zeros(0, dtype=np.int64)
    tree = cKDTree(centers)
    return tree.query_ball_point(centers, NEIGHBOURHOOD, return_length=True) - 1
