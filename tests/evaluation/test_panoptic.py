"""Oracles: stardist's and torchmetrics' panoptic quality, AJI by masks, and discs by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_d2.evaluation import panoptic_quality
from cellseg_d2.evaluation.overlaps import instance_overlaps
from cellseg_d2.evaluation.panoptic import (
    IOU_THRESHOLDS,
    MatchCounts,
    aggregated_jaccard_index,
    counts_over_iou,
    foreground_dice,
)

from .label_maps import PAIRS, discs_and_guesses, relabelled


def naive_aji(gt: np.ndarray, pred: np.ndarray) -> float:
    """Kumar's algorithm, instance by instance, on bitmaps."""
    used, shared, union = set(), 0, 0
    guesses = list(dict.fromkeys(pred[pred > 0].tolist()))
    for i in np.unique(gt[gt > 0]):
        mask = gt == i
        best = max(guesses, key=lambda j: iou(mask, pred == j), default=None)
        if best is None or not (mask & (pred == best)).any():
            union += mask.sum()
            continue
        used.add(best)
        shared += (mask & (pred == best)).sum()
        union += (mask | (pred == best)).sum()
    union += sum((pred == j).sum() for j in guesses if j not in used)
    return shared / union if union else math.nan


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def same(a, b) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


@pytest.mark.parametrize("seed", range(4))
def test_equals_stardist(seed: int) -> None:
    matching = pytest.importorskip("stardist.matching", exc_type=ImportError).matching
    gt, pred = discs_and_guesses(seed)
    for threshold, counts in zip(
        IOU_THRESHOLDS, counts_over_iou(instance_overlaps(gt, pred)), strict=True
    ):
        # stardist matches at the threshold too, where one half is no unique match.
        expected = matching(gt, pred, thresh=threshold + 1e-6)
        assert (counts.tp, counts.fp, counts.fn) == (expected.tp, expected.fp, expected.fn)
        assert counts.dq == pytest.approx(expected.f1)
        # stardist keeps IoUs as float32.
        assert counts.sq == pytest.approx(expected.mean_matched_score, abs=1e-6)
        assert counts.pq == pytest.approx(expected.panoptic_quality, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_equals_torchmetrics(seed: int) -> None:
    detection = pytest.importorskip("torchmetrics.detection", exc_type=ImportError)
    gt, pred = discs_and_guesses(seed)

    def things(label_map: np.ndarray) -> torch.Tensor:
        # (1, H, W, 2): category 1 is a cell, 0 the background, which is "stuff".
        return torch.from_numpy(np.stack([label_map > 0, label_map], axis=-1).astype(np.int64))[
            None
        ]

    metric = detection.PanopticQuality(
        things={1}, stuffs={0}, return_per_class=True, return_sq_and_rq=True
    )
    pq, sq, dq = metric(things(pred), things(gt))[metric.cat_id_to_continuous_id[1]].tolist()
    found = panoptic_quality(gt, pred)
    assert found["PQ"] == pytest.approx(100 * pq, rel=1e-5)
    assert found["SQ"] == pytest.approx(100 * sq, rel=1e-5)
    assert found["DQ"] == pytest.approx(100 * dq, rel=1e-5)
    assert 20 < found["PQ"] < 90  # the case is neither trivial nor hopeless


def test_squares_worked_out_by_hand() -> None:
    gt = np.zeros((12, 30), dtype=np.uint8)
    pred = np.zeros((12, 30), dtype=np.uint16)
    gt[1:5, 1:5], pred[1:5, 2:6] = 1, 7  # 16 and 16 pixels, 12 shared: IoU 12 / 20
    gt[1:5, 10:14], pred[1:5, 12:16] = 2, 8  # 8 shared: IoU 8 / 24, no match
    gt[8:10, 1:3] = 3  # missed
    pred[8, 20] = 9  # spurious, one pixel
    found = panoptic_quality(gt, pred)
    assert (found["TP"], found["FP"], found["FN"]) == (1, 2, 2)
    assert found["DQ"] == pytest.approx(100 / 3)
    assert found["SQ"] == pytest.approx(60)
    assert found["PQ"] == pytest.approx(20)
    overlaps = instance_overlaps(gt, pred)
    assert aggregated_jaccard_index(overlaps) == pytest.approx((12 + 8) / (20 + 24 + 4 + 1))
    assert foreground_dice(overlaps) == pytest.approx(2 * 20 / (36 + 33))


def test_an_iou_of_one_half_is_no_match() -> None:
    gt, pred = np.zeros((2, 1, 4), dtype=np.int32)
    gt[0, :2], pred[0, :1] = 1, 1
    assert panoptic_quality(gt, pred)["TP"] == 0
    gt[0, 2] = pred[0, 1] = 1  # 2 of 3
    assert panoptic_quality(gt, pred)["TP"] == 1
    assert panoptic_quality(gt, pred, iou_threshold=0.7)["TP"] == 0


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_aji_equals_the_naive_one(maps):
    overlaps = instance_overlaps(*maps)
    found, expected = aggregated_jaccard_index(overlaps), naive_aji(*maps)
    assert same(found, expected) or found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_aji_of_discs_equals_the_naive_one(seed: int) -> None:
    gt, pred = discs_and_guesses(seed)
    found = aggregated_jaccard_index(instance_overlaps(gt, pred))
    assert found == pytest.approx(naive_aji(gt, pred), rel=1e-12)
    assert 0.2 < found < 0.9


@settings(max_examples=200, deadline=None)
@given(PAIRS, st.integers(0, 2**32 - 1))
def test_other_ids_change_nothing(maps, seed):
    rng = np.random.default_rng(seed)
    others = [relabelled(label_map, rng) for label_map in maps]
    found, expected = panoptic_quality(*others), panoptic_quality(*maps)
    assert all(same(found[key], value) for key, value in expected.items())
    found, expected = instance_overlaps(*others), instance_overlaps(*maps)
    for measure in (aggregated_jaccard_index, foreground_dice):
        assert same(measure(found), measure(expected))


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_a_map_against_itself_and_swapped(maps):
    gt, pred = maps
    if gt.any():
        assert panoptic_quality(gt, gt)["PQ"] == 100
        assert aggregated_jaccard_index(instance_overlaps(gt, gt)) == 1
    there, back = panoptic_quality(gt, pred), panoptic_quality(pred, gt)
    # The IoUs are summed in another order.
    assert there["PQ"] == pytest.approx(back["PQ"], nan_ok=True)
    assert (there["FP"], there["FN"]) == (back["FN"], back["FP"])


def test_empty_maps() -> None:
    empty, full = np.zeros((5, 5), np.int32), np.eye(5, dtype=np.int32)
    for gt, pred in ((empty, full), (full, empty)):
        found = panoptic_quality(gt, pred)
        assert [found[key] for key in ("PQ", "SQ", "DQ", "TP")] == [0, 0, 0, 0]
        assert found["FP"] + found["FN"] == 1
        assert aggregated_jaccard_index(instance_overlaps(gt, pred)) == 0
        assert foreground_dice(instance_overlaps(gt, pred)) == 0
    nothing = panoptic_quality(empty, empty)
    assert all(math.isnan(nothing[key]) for key in ("PQ", "SQ", "DQ"))
    assert math.isnan(aggregated_jaccard_index(instance_overlaps(empty, empty)))
    assert math.isnan(foreground_dice(instance_overlaps(empty, empty)))


def test_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match="shape"):
        panoptic_quality(np.zeros((2, 3), np.int32), np.zeros((3, 2), np.int32))


def test_counts_of_images_add_up() -> None:
    total = MatchCounts(2, 1, 0, 1.5) + MatchCounts(1, 0, 3, 0.75)
    assert total == MatchCounts(3, 1, 3, 2.25)
    assert total.scores() == pytest.approx({"PQ": 45, "SQ": 75, "DQ": 60})
