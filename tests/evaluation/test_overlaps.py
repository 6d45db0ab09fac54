"""Oracles: pycocotools' IoU, skimage's regionprops, and counting pixels one pair at a time."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from skimage.measure import regionprops

from cellseg_d2.evaluation.overlaps import instance_overlaps
from cellseg_d2.structures import encode_label_map

from .label_maps import PAIRS, discs_and_guesses


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_equals_counting_pair_by_pair(maps):
    gt, pred = maps
    found = instance_overlaps(gt, pred)
    for side, label_map in ((found.gt, gt), (found.pred, pred)):
        # In the order of first pixels.
        assert side.ids.tolist() == list(dict.fromkeys(label_map[label_map > 0].tolist()))
        assert side.areas.tolist() == [(label_map == i).sum() for i in side.ids]
    pairs = {
        (n, m): ((gt == g) & (pred == p)).sum()
        for n, g in enumerate(found.gt.ids)
        for m, p in enumerate(found.pred.ids)
    }
    listed = list(zip(found.gt_index.tolist(), found.pred_index.tolist(), strict=True))
    assert listed == [pair for pair, shared in pairs.items() if shared]
    assert found.intersections.tolist() == [pairs[pair] for pair in listed]


def test_ious_and_centroids_of_discs() -> None:
    gt, pred = discs_and_guesses(0)
    found = instance_overlaps(gt, pred)
    dense = np.zeros((len(found.gt), len(found.pred)))
    dense[found.gt_index, found.pred_index] = found.ious
    by_id = np.ix_(np.argsort(found.gt.ids), np.argsort(found.pred.ids))
    rles = encode_label_map(gt).rles(), encode_label_map(pred).rles()
    expected = mask_util.iou(*rles, [False] * len(found.pred))
    np.testing.assert_allclose(dense[by_id], expected, rtol=1e-12)
    for side, label_map in ((found.gt, gt), (found.pred, pred)):
        centroids = {p.label: p.centroid[::-1] for p in regionprops(label_map)}
        expected = np.array([centroids[i] for i in side.ids])
        np.testing.assert_allclose(side.centroids, expected, rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_selection_is_as_if_the_others_were_background(maps):
    gt, pred = maps
    found = instance_overlaps(gt, pred)
    selected = found.select(found.gt.ids % 2 == 0, found.pred.ids > 2)
    expected = instance_overlaps(
        np.where(gt % 2 == 0, gt, 0).astype(np.int32), np.where(pred > 2, pred, 0).astype(np.int32)
    )
    assert selected.gt.ids.tolist() == expected.gt.ids.tolist()
    assert selected.pred.areas.tolist() == expected.pred.areas.tolist()
    np.testing.assert_array_equal(selected.gt.centroids, expected.gt.centroids)
    for name in ("gt_index", "pred_index", "intersections"):
        np.testing.assert_array_equal(getattr(selected, name), getattr(expected, name))


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
)
def test_dtypes_may_differ(dtype: str) -> None:
    gt, pred = discs_and_guesses(1, count=20)
    found, expected = instance_overlaps(gt.astype(dtype), pred), instance_overlaps(gt, pred)
    assert found.gt.ids.tolist() == expected.gt.ids.tolist()
    assert found.intersections.tolist() == expected.intersections.tolist()


def test_views_and_the_largest_id() -> None:
    gt = np.zeros((4, 6), dtype=np.int32)
    gt[1, 2] = gt[3, 5] = 2**31 - 1
    found = instance_overlaps(gt.T, np.asfortranarray(gt.T))
    assert found.gt.ids.tolist() == [2**31 - 1] and found.ious.tolist() == [1]
    assert found.gt.centroids.tolist() == [[2, 3.5]]


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (3, 4)])
def test_nothing(shape) -> None:
    empty = np.zeros(shape, dtype=np.int32)
    found = instance_overlaps(empty, empty)
    assert len(found.gt) == len(found.pred) == len(found.ious) == 0
    assert not found.matches().any()


def test_refusals() -> None:
    ones = np.ones((3, 4), dtype=np.int32)
    with pytest.raises(ValueError, match="shape"):
        instance_overlaps(ones, ones.T)
    with pytest.raises(ValueError, match="shape"):
        instance_overlaps(ones[None], ones[None])
    with pytest.raises(TypeError, match="pred"):
        instance_overlaps(ones, ones.astype(float))
    with pytest.raises(ValueError, match="2\\*\\*31"):
        instance_overlaps(-ones, ones)
    with pytest.raises(ValueError, match="2\\*\\*31"):
        instance_overlaps(ones, ones.astype(np.int64) << 31)
    for threshold in (0.49, 1.0):
        with pytest.raises(ValueError, match="threshold"):
            instance_overlaps(ones, ones).matches(threshold)
