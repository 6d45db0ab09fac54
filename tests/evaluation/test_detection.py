"""Oracles: all assignments tried out, and HoVer-Net's formulas on lists of pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from cellseg_d2.evaluation.confusion import confusion_matrix
from cellseg_d2.evaluation.detection import classification_f1, detection_f1, match_centroids


@pytest.mark.parametrize("seed", range(6))
def test_pairs_have_the_least_sum_of_distances(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gt, pred = rng.uniform(0, 30, (5, 2)), rng.uniform(0, 30, (5, 2))
    distances = np.linalg.norm(gt[:, None] - pred[None], axis=2)
    best = min(itertools.permutations(range(5)), key=lambda order: distances[range(5), order].sum())
    expected = {(i, j) for i, j in enumerate(best) if distances[i, j] <= 12}
    assert set(zip(*match_centroids(gt, pred), strict=True)) == expected


def test_the_radius_counts_and_its_edge_is_inside() -> None:
    gt, pred = np.array([[0.0, 0], [100, 100]]), np.array([[100, 112.0], [0, 12.01]])
    assert [part.tolist() for part in match_centroids(gt, pred)] == [[1], [0]]
    assert match_centroids(gt, pred, radius=13)[0].tolist() == [0, 1]


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_no_points(n: int, m: int) -> None:
    gt_index, pred_index = match_centroids(np.zeros((n, 2)), np.zeros((m, 2)))
    assert len(gt_index) == len(pred_index) == 0


def expected_f_c(pairs, spurious, missed, category: int) -> float:
    """The paper's formula over the pairs in which either is of the class."""
    own = [(g, p) for g, p in pairs if category in (g, p)]
    tp = sum(g == p == category for g, p in own)
    tn = sum(g != category and p != category for g, p in own)
    fp = sum(g != category and p == category for g, p in own)
    fn = sum(g == category and p != category for g, p in own)
    top = 2 * (tp + tn)
    bottom = top + 2 * fp + 2 * fn + spurious.count(category) + missed.count(category)
    return top / bottom if bottom else math.nan


@pytest.mark.parametrize("seed", range(6))
def test_f_d_and_f_c_equal_the_formulas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = rng.integers(4, size=(40, 2)).tolist()
    pairs += [[k, k] for k in rng.integers(4, size=80)]
    spurious, missed = rng.integers(4, size=9).tolist(), rng.integers(4, size=14).tolist()
    gt_classes = np.array([g for g, _ in pairs] + missed)
    pred_classes = np.array([p for _, p in pairs] + spurious)
    index = np.arange(len(pairs))
    confusion = confusion_matrix(gt_classes, pred_classes, index, index, 5)
    tp, fp, fn = len(pairs), len(spurious), len(missed)
    assert detection_f1(confusion) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    expected = [expected_f_c(pairs, spurious, missed, k) for k in range(5)]
    np.testing.assert_allclose(classification_f1(confusion), expected)
    assert math.isnan(expected[4])  # class 4 is nowhere


def test_nothing_at_all() -> None:
    nothing = np.zeros((3, 3), dtype=np.int64)
    assert math.isnan(detection_f1(nothing)) and np.isnan(classification_f1(nothing)).all()
