"""Grids worked out by hand, and the properties that the joining of cells rests on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_d2.errors import ConfigError
from cellseg_d2.inference.tile_grid import GRID_STEP, make_grid, split_axis


def test_axes_by_hand() -> None:
    # 2048 needs 3 tiles of up to 1024 that share 96; three steps of 672 cover it.
    axis = split_axis(2048, 1024, 96)
    assert axis.starts.tolist() == [0, 672, 1344] and axis.ends.tolist() == [768, 1440, 2048]
    assert axis.core_bounds.tolist() == [-np.inf, 720, 1392, np.inf]
    # A step of 924 is rounded down to 896, so that the overlap of 100 becomes 128.
    axis = split_axis(100_000, 1024, 100)
    assert set(np.diff(axis.starts)) == {896} and axis.ends[0] == 1024 and axis.ends[-1] == 100_000
    # Too small for steps of 32.
    axis = split_axis(50, 20, 6)
    assert axis.starts.tolist() == [0, 11, 22, 33] and axis.ends.tolist() == [17, 28, 39, 50]


@pytest.mark.parametrize("length", [1, 500, 1024])
def test_an_image_no_larger_than_a_tile_is_one(length: int) -> None:
    axis = split_axis(length, 1024, 96)
    assert axis.starts.tolist() == [0] and axis.ends.tolist() == [length]
    assert axis.core_bounds.tolist() == [-np.inf, np.inf]


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 1200), st.data())
def test_tiles_cover_the_axis_and_overlap_as_asked(length: int, size: int, data) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    axis = split_axis(length, size, overlap)
    assert axis.starts[0] == 0 and axis.ends[-1] == length
    sizes = axis.ends - axis.starts
    assert sizes.max() <= size and sizes.min() >= 1
    assert len(set(sizes[:-1])) <= 1 and sizes[-1] <= sizes[0]
    if len(sizes) > 1:
        shared = axis.ends[:-1] - axis.starts[1:]
        assert shared.min() >= overlap and len(set(shared)) == 1
        assert sizes.min() > shared[0]
        if size - overlap >= GRID_STEP:
            assert not (axis.starts % GRID_STEP).any()
            # As few tiles as the largest allowed would take.
            step = (size - overlap) // GRID_STEP * GRID_STEP
            assert len(sizes) == 1 + -(-(length - size) // step)


@settings(deadline=None)
@given(*[st.integers(1, 200)] * 2, st.integers(12, 90), st.data())
def test_one_tile_answers_for_a_box_and_sees_it_whole_if_any_does(height, width, size, data):
    overlap = data.draw(st.integers(size // 4, max(size // 4, size // 2)))
    grid = make_grid((height, width), size, min(overlap, size - 1))
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    box = np.array([[x0, y0, x1, y1]])
    tiles = [grid.tile(r, c) for r in range(grid.num_rows) for c in range(grid.num_columns)]
    assert [tile.number for tile in tiles] == list(range(len(tiles)))
    answering = [tile for tile in tiles if grid.answers_for(tile, box)[0]]
    assert answering == [grid.responsible_tile(box[0])]
    inside = [
        t.left <= x0 and x1 <= t.left + t.width and t.top <= y0 and y1 <= t.top + t.height
        for t in tiles
    ]
    if any(inside):
        assert inside[answering[0].number]


@settings(deadline=None)
@given(*[st.integers(1, 200)] * 2, st.integers(8, 90), st.data())
def test_neighbours_are_all_tiles_that_meet(height: int, width: int, size: int, data) -> None:
    grid = make_grid((height, width), size, data.draw(st.integers(0, 3 * size // 4)))
    tiles = [grid.tile(r, c) for r in range(grid.num_rows) for c in range(grid.num_columns)]

    def meet(a, b) -> bool:
        rows = a.top <= b.top + b.height and b.top <= a.top + a.height
        return rows and a.left <= b.left + b.width and b.left <= a.left + a.width

    tile = tiles[data.draw(st.integers(0, len(tiles) - 1))]
    expected = [other for other in tiles[: tile.number] if meet(tile, other)]
    assert sorted(grid.neighbours_before(tile)) == expected


def test_depths_are_measured_from_inner_borders() -> None:
    grid = make_grid((64, 96), 64, 32)
    left, right = grid.tile(0, 0), grid.tile(0, 1)
    assert (left.left, left.width, right.left, right.width) == (0, 64, 32, 64)
    boxes = np.array([[0, 0, 60, 64], [33, 0, 40, 5], [35.5, 2, 64, 5]])
    assert grid.depths(left, boxes).tolist() == [4, 24, 0]
    assert grid.depths(right, boxes).tolist() == [-32, 1, 3.5]
    alone = make_grid((64, 64), 64, 32)
    assert grid.depths(left, boxes[:0]).shape == (0,)
    assert (alone.depths(alone.tile(0, 0), boxes) == np.inf).all()
    corner = make_grid((96, 96), 64, 32)
    assert corner.depths(corner.tile(1, 1), np.array([[40, 35, 50, 50]])).tolist() == [3]


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (-1, 0), (64, 64), (64, 90), (64, -1)])
def test_impossible_tiles_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match="TEST.TILE"):
        make_grid((100, 100), size, overlap)
