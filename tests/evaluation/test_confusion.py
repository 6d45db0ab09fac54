"""The confusion matrix, worked out by hand, and against counting pair by pair."""

from __future__ import annotations

import numpy as np

from cellseg_d2.evaluation.confusion import confusion_matrix


def test_worked_out_by_hand() -> None:
    gt_classes, pred_classes = np.array([0, 1, 1, 0]), np.array([1, 1, 0])
    found = confusion_matrix(gt_classes, pred_classes, np.array([2, 0]), np.array([1, 0]), 2)
    # True 1 taken for 1, true 0 for 1; prediction 2, of class 0, spurious; 1 and 3 missed.
    assert found.tolist() == [[0, 1, 1], [0, 1, 1], [1, 0, 0]]
    empty = np.zeros(0, dtype=np.int64)
    assert not confusion_matrix(empty, empty, empty, empty, 2).any()


def test_equals_counting_one_by_one() -> None:
    rng = np.random.default_rng(0)
    gt_classes, pred_classes = rng.integers(3, size=50), rng.integers(3, size=40)
    gt_index, pred_index = rng.permutation(50)[:30], rng.permutation(40)[:30]
    expected = np.zeros((4, 4), dtype=int)
    for g, p in zip(gt_index, pred_index, strict=True):
        expected[gt_classes[g], pred_classes[p]] += 1
    for g in set(range(50)) - set(gt_index.tolist()):
        expected[gt_classes[g], 3] += 1
    for p in set(range(40)) - set(pred_index.tolist()):
        expected[3, pred_classes[p]] += 1
    found = confusion_matrix(gt_classes, pred_classes, gt_index, pred_index, 3)
    assert found.dtype == np.int64 and np.array_equal(found, expected)
