"""Oracles: NumPy on bitmaps, and pycocotools."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellseg_d2.structures.run_decoding import decode_runs
from cellseg_d2.structures.run_sets import (
    areas,
    areas_within,
    concatenate_runs,
    intersection_areas,
    move_runs,
    select_runs,
    split_columns,
    tight_boxes,
    unite_runs,
)
from cellseg_d2.structures.runs import PixelRuns

BITMAPS = hnp.arrays(bool, st.tuples(st.integers(0, 5), st.integers(1, 7), st.integers(1, 7)))


def runs_of(masks: np.ndarray) -> PixelRuns:
    return decode_runs([encode(mask) for mask in masks], masks.shape[1:])


def encode(mask: np.ndarray) -> dict:
    return mask_util.encode(np.asfortranarray(mask))


def assert_same(found: PixelRuns, expected: PixelRuns) -> None:
    assert found.image_size == expected.image_size
    for name in ("starts", "ends", "offsets"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == np.int64
        np.testing.assert_array_equal(a, b)


@settings(max_examples=100, deadline=None)
@given(BITMAPS, st.data())
def test_selection_and_concatenation(masks, data):
    n = len(masks)
    indices = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=6) if n else st.just([])))
    indices = indices.astype(np.int64)
    runs = runs_of(masks)
    assert_same(select_runs(runs, indices), runs_of(masks[indices]))
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool)
    assert_same(select_runs(runs, chosen), runs_of(masks[chosen]))
    both = concatenate_runs([runs, runs_of(masks[chosen]), runs_of(masks[:0])])
    assert_same(both, runs_of(np.concatenate([masks, masks[chosen]])))


def test_sets_of_different_images_are_not_concatenated():
    with pytest.raises(ValueError, match="one image size"):
        concatenate_runs([runs_of(np.ones((1, 2, 3), bool)), runs_of(np.ones((1, 3, 2), bool))])
    with pytest.raises(ValueError, match="at least one"):
        concatenate_runs([])


@settings(max_examples=150, deadline=None)
@given(BITMAPS, *[st.integers(0, 3)] * 4)
def test_moved_masks_are_those_pasted_into_a_larger_image(masks, top, left, below, right):
    _, height, width = masks.shape
    pasted = np.pad(masks, [(0, 0), (top, below), (left, right)])
    moved = move_runs(runs_of(masks), top, left, pasted.shape[1:])
    assert_same(moved, runs_of(pasted))
    assert moved.rles() == [encode(mask) for mask in pasted]


def test_a_window_lies_inside_the_image():
    runs = runs_of(np.ones((1, 3, 4), bool))
    for place in ((-1, 0), (0, 3), (2, 0)):
        with pytest.raises(ValueError, match="window"):
            move_runs(runs, *place, (4, 6))


@settings(max_examples=150, deadline=None)
@given(BITMAPS, st.data())
def test_columns_areas_and_boxes(masks, data):
    runs = runs_of(masks)
    np.testing.assert_array_equal(areas(runs), masks.sum((1, 2)))
    drawn = np.zeros(masks.shape, int)
    instances = np.repeat(np.arange(len(masks)), np.diff(runs.offsets))
    for run, x, y0, y1 in zip(*split_columns(runs), strict=True):
        drawn[instances[run], y0:y1, x] += 1
    np.testing.assert_array_equal(drawn, masks)

    boxes = mask_util.toBbox([encode(mask) for mask in masks]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_array_equal(tight_boxes(runs), boxes)

    corner = st.integers(-1, 8)
    windows = [[data.draw(corner) for _ in range(4)] for _ in masks]
    expected = [
        mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)].sum()
        for mask, (x0, y0, x1, y1) in zip(masks, windows, strict=True)
    ]
    windows = np.array(windows, dtype=np.int64).reshape(-1, 4)
    np.testing.assert_array_equal(areas_within(runs, windows), expected)


@settings(max_examples=150, deadline=None)
@given(BITMAPS, st.booleans())
def test_intersections_of_all_pairs(masks, shifted):
    height, width = masks.shape[1:]
    first, second = (index.ravel() for index in np.indices((len(masks),) * 2))
    expected = (masks[first] & masks[second]).sum((1, 2))
    np.testing.assert_array_equal(intersection_areas(runs_of(masks), first, second), expected)
    if len(masks) and width > 1 and height > 1:
        masks = masks.copy()
        masks[:, -1] = masks[:, :, -1] = False
        shifts = np.where(first % 2, height, 1)
        right, down = np.roll(masks, 1, axis=2), np.roll(masks, 1, axis=1)
        moved = np.where((first % 2)[:, None, None] == 1, right[first], down[first])
        found = intersection_areas(runs_of(masks), first, second, shifts)
        np.testing.assert_array_equal(found, (moved & masks[second]).sum((1, 2)))


@settings(max_examples=150, deadline=None)
@given(BITMAPS, st.data())
def test_unions(masks, data):
    num_groups = 3
    groups = [data.draw(st.integers(0, num_groups - 1)) for _ in masks]
    groups = np.array(groups, dtype=np.int64)
    expected = np.zeros((num_groups, *masks.shape[1:]), bool)
    for group, mask in zip(groups, masks, strict=True):
        expected[group] |= mask
    assert_same(unite_runs(runs_of(masks), groups, num_groups), runs_of(expected))


def test_a_slide_costs_no_more_than_its_runs():
    # A bitmap of either mask would have 10^10 pixels, beyond pycocotools' 32 bits too.
    size = (100_000, 100_000)
    disc = runs_of(np.hypot(*np.mgrid[-20:21, -20:21])[None] <= 20)
    near = move_runs(disc, 99_000, 99_950, size)
    shifted = move_runs(disc, 99_010, 99_955, size)
    both = concatenate_runs([near, shifted])
    apart = np.hypot(*np.mgrid[-20:21, -20:21]) <= 20
    expected = int((apart[10:, 5:] & apart[:-10, :-5]).sum())
    assert intersection_areas(both, np.array([0]), np.array([1])).tolist() == [expected]
    union = unite_runs(both, np.zeros(2, np.int64), 1)
    assert areas(union).tolist() == [2 * int(apart.sum()) - expected]
    assert tight_boxes(union).tolist() == [[99_950, 99_000, 99_996, 99_051]]
    assert len(union.starts) == 46
