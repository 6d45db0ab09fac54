"""Which classes are taken for which, with what was missed and what is spurious."""

from __future__ import annotations

import numpy as np


def confusion_matrix(
    gt_classes: np.ndarray,
    pred_classes: np.ndarray,
    gt_index: np.ndarray,
    pred_index: np.ndarray,
    num_classes: int,
) -> np.ndarray:
    """Count matched pairs by their classes, and what has no match.

    Args:
        gt_classes: (N,) of the ground-truth instances, from 0 to C - 1.
        pred_classes: (M,) of the predicted ones.
        gt_index: (K,) of the matched pairs; no instance is in two.
        pred_index: (K,).
        num_classes: C.

    Returns:
        (C + 1, C + 1) int64. Row: the ground truth's class, the last one for predictions that
        match nothing (spurious). Column: the predicted class, the last one for instances that
        nothing matches (missed). The last of both is 0.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    np.add.at(counts, (gt_classes[gt_index], pred_classes[pred_index]), 1)
    np.add.at(counts[:, -1], np.delete(gt_classes, gt_index), 1)
    np.add.at(counts[-1], np.delete(pred_classes, pred_index), 1)
    return counts
