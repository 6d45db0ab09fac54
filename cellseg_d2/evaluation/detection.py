"""Detection and classification F1 by centroids, as HoVer-Net's evaluation defines them.

Graham et al., HoVer-Net, Medical Image Analysis 2019; the conventions are those of its released
``compute_stats.py``, which the published CoNSeP table was made with.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

RADIUS = 12.0
"""Pixels at 40x (.25 µm each) within which two centroids are of one cell; HoVer-Net's."""


def match_centroids(
    gt: np.ndarray, pred: np.ndarray, radius: float = RADIUS
) -> tuple[np.ndarray, np.ndarray]:
    """Pair points one to one so that the sum of distances is least, then drop distant pairs.

    The assignment is over all points; the radius is applied afterwards. So a crowd of spurious
    points can, as in HoVer-Net's evaluation, cost a pair that was within the radius. Nor can the
    points be parted into neighbourhoods: one far away may change who is paired. So all distances
    are held at once, 200 MB for 5,000 points a side.

    Args:
        gt: (N, 2) x and y in pixels.
        pred: (M, 2).
        radius: pairs further apart are none.

    Returns:
        (K,) int64 twice: the indices of the paired points.
    """
    distances = cdist(gt.reshape(-1, 2), pred.reshape(-1, 2))
    gt_index, pred_index = linear_sum_assignment(distances)
    near = distances[gt_index, pred_index] <= radius
    return gt_index[near], pred_index[near]


def detection_f1(confusion: np.ndarray) -> float:
    """F_d, the F1 score of finding cells whatever their class.

    Args:
        confusion: (C + 1, C + 1) by centroids, see ``confusion_matrix``, of all images together.

    Returns:
        2 TP_d / (2 TP_d + FP_d + FN_d), in [0, 1]; NaN where there are no cells at all.
    """
    tp = confusion[:-1, :-1].sum()
    total = 2 * tp + confusion[-1].sum() + confusion[:, -1].sum()
    return float(2 * tp / total) if total else float("nan")


def classification_f1(confusion: np.ndarray) -> np.ndarray:
    """F_c of each class: finding its cells, and naming them.

    F_c = 2 (TP_c + TN_c) / (2 (TP_c + TN_c) + 2 FP_c + 2 FN_c + FP_d + FN_d). TP_c are paired cells
    of class c on both sides, FP_c and FN_c paired cells of class c on one side only, FP_d and FN_d
    the unpaired ones of class c. TN_c is 0: the released evaluation looks only at pairs in which
    either cell is of class c, and so does this one.

    Args:
        confusion: (C + 1, C + 1) by centroids, of all images together.

    Returns:
        (C,) in [0, 1]; NaN for a class that is neither there nor predicted.
    """
    pairs = confusion[:-1, :-1]
    tp = np.diagonal(pairs)
    wrong = pairs.sum(axis=0) + pairs.sum(axis=1) - 2 * tp
    total = 2 * tp + 2 * wrong + confusion[-1, :-1] + confusion[:-1, -1]
    return np.divide(2.0 * tp, total, out=np.full(len(tp), np.nan), where=total > 0)
