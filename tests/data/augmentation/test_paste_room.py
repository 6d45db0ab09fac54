"""Room for cells: against the rule counted anew at every place of the image."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cellseg_d2.data.augmentation.paste_room import GRID, PasteRoom
from cellseg_d2.data.synthetic import make_label_map


def disc(radius: int, margin: int = 1) -> np.ndarray:
    reach = radius + margin
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return x * x + y * y <= radius * radius


def allowed(
    label_maps: list[np.ndarray], mask: np.ndarray, max_cover: float, step: int = 1
) -> set[tuple[int, int]]:
    """Every corner at which the mask takes no more than the share of any instance."""
    areas = [np.bincount(m.ravel()) for m in label_maps]
    height, width = label_maps[0].shape
    found = set()
    for y in range(0, height - mask.shape[0] + 1, step):
        for x in range(0, width - mask.shape[1] + 1, step):
            window = np.s_[y : y + mask.shape[0], x : x + mask.shape[1]]
            for label_map, area in zip(label_maps, areas, strict=True):
                lost = np.bincount(label_map[window][mask], minlength=len(area))
                if (lost > max_cover * area + 1e-9)[1:].any():
                    break
            else:
                found.add((y, x))
    return found


def first_taken(room: PasteRoom, mask: np.ndarray) -> tuple[int, int] | None:
    for place in room.places(mask).tolist():
        window = room.window_at(place, mask.shape, (GRID // 2, GRID // 2))
        if room.take(mask, window):
            return window[0].start, window[1].start
    return None


@pytest.mark.parametrize("max_cover", [0.0, 0.1, 0.3])
def test_it_takes_what_the_rule_allows_and_nothing_else(max_cover: float) -> None:
    labels = make_label_map(np.random.default_rng(0), (90, 100), 40)
    label_maps = [np.where(labels % 2 == k, labels, 0).astype(np.int32) for k in (0, 1)]
    mask = disc(6)
    expected = allowed(label_maps, mask, max_cover)
    for y in range(0, 90 - mask.shape[0] + 1, 3):
        for x in range(0, 100 - mask.shape[1] + 1, 3):
            window = np.s_[y : y + mask.shape[0], x : x + mask.shape[1]]
            assert PasteRoom(label_maps, (90, 100), max_cover).take(mask, window) == (
                (y, x) in expected
            )
    assert 0 < len(expected) < 80 * 80


@pytest.mark.parametrize("seed", range(6))
def test_in_a_dense_image_a_place_is_found_where_there_is_one(seed: int) -> None:
    # 75 % are cells. Of blind draws nine in ten would fail.
    labels = make_label_map(np.random.default_rng(seed), (200, 200), 60)
    mask = disc(13)
    expected = allowed([labels], mask, 0.2, step=2)
    blind = len(expected) / 87**2
    assert 0 < blind < 0.1
    place = first_taken(PasteRoom([labels], (200, 200), 0.2), mask)
    assert place is not None
    assert place in allowed([labels], mask, 0.2)


def test_the_one_gap_is_found_to_within_the_grid() -> None:
    labels = np.arange(1, 26, dtype=np.int32).reshape(5, 5).repeat(20, 0).repeat(20, 1)
    labels[37:54, 61:80] = 0
    mask = np.ones((15, 15), bool)
    room = PasteRoom([labels], (100, 100), 0.0)
    near = {
        (rows.start, columns.start)
        for place in room.places(mask).tolist()
        for offset in itertools.product(range(GRID), repeat=2)
        for rows, columns in [room.window_at(place, (15, 15), offset)]
    }
    expected = allowed([labels], mask, 0.0)
    assert expected == {(y, x) for y in (37, 38, 39) for x in range(61, 66)}
    assert expected <= near and len(near) < 86 * 86 / 4


def test_a_share_is_of_the_whole_instance_however_far_its_parts() -> None:
    labels = np.zeros((20, 300), np.int32)
    labels[5:7, 5:10] = labels[5:14, 280:290] = 7  # 10 pixels here and 90 far away
    window = np.s_[4:8, 4:11]
    mask = np.ones((4, 7), bool)
    assert PasteRoom([labels], (20, 300), 0.1).take(mask, window)
    labels[5, 280] = 0
    assert not PasteRoom([labels], (20, 300), 0.1).take(mask, window)


def test_what_was_taken_counts_together() -> None:
    labels = np.zeros((30, 30), np.int32)
    labels[10:20, 10:20] = 1
    room = PasteRoom([labels], (30, 30), 0.25)
    mask = np.ones((5, 4), bool)
    assert room.take(mask, np.s_[10:15, 10:14])  # 20 of 100
    assert not room.take(mask, np.s_[8:13, 16:20])  # 12 more
    assert not room.take(mask, np.s_[12:17, 8:12]), "it overlaps what was taken"
    assert room.take(np.ones((1, 5), bool), np.s_[19:20, 10:15])  # 5 more
    assert not room.take(np.ones((1, 1), bool), np.s_[19:20, 19:20])


def test_places_taken_are_not_offered_again_while_there_are_others() -> None:
    room = PasteRoom([], (64, 64), 0.2)
    mask = np.ones((16, 16), bool)
    everywhere = room.places(mask)
    assert len(everywhere) == 13 * 13
    assert room.take(mask, np.s_[24:40, 24:40])
    left = room.places(mask)
    assert 64 <= len(left) < len(everywhere)
    windows = [room.window_at(place, (16, 16), (GRID // 2, GRID // 2)) for place in left.tolist()]
    overlaps = [abs(r.start - 24) < 16 - GRID and abs(c.start - 24) < 16 - GRID for r, c in windows]
    assert not any(overlaps)


@pytest.mark.parametrize("offset", [0, 2**15 - 3, 2**16 - 2, 2**31 - 1 - 45])
def test_large_ids_are_as_good_as_small_ones(offset: int) -> None:
    labels = make_label_map(np.random.default_rng(3), (120, 120), 45)
    spread = np.where(labels > 0, labels.astype(np.int64) + offset, 0).astype(np.int32)
    mask = disc(8)
    small, large = (PasteRoom([m], (120, 120), 0.2) for m in (labels, spread))
    assert np.array_equal(small.places(mask), large.places(mask))
    assert first_taken(small, mask) == first_taken(large, mask) is not None


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (33, 35), (34, 33), (100, 7)])
@pytest.mark.parametrize("mask_size", [(1, 1), (3, 3), (5, 7), (33, 33), (200, 1)])
def test_windows_lie_inside_and_reach_every_side(
    size: tuple[int, int], mask_size: tuple[int, int]
) -> None:
    room = PasteRoom([np.zeros(size, np.int32)], size, 0.2)
    mask = np.ones(mask_size, bool)
    places = room.places(mask)
    assert bool(len(places)) == (mask_size[0] <= size[0] and mask_size[1] <= size[1])
    starts: set[tuple[int, int]] = set()
    for place in places.tolist():
        for shift in range(GRID):
            window = room.window_at(place, mask_size, (shift, shift))
            for side, length, image_side in zip(window, mask_size, size, strict=True):
                assert side.stop - side.start == length
                assert 0 <= side.start and side.stop <= image_side
            starts.add((window[0].start, window[1].start))
    if len(places):
        for axis in (0, 1):
            reached = [start[axis] for start in starts]
            assert min(reached) == 0
            assert max(reached) >= size[axis] - mask_size[axis] - GRID // 2


def test_no_label_maps_and_no_cells_leave_all_room() -> None:
    for label_maps in ([], [np.zeros((40, 40), np.int32)]):
        room = PasteRoom(label_maps, (40, 40), 0.0)
        assert len(room.places(np.ones((8, 8), bool))) == 9 * 9
        assert room.take(np.ones((8, 8), bool), np.s_[0:8, 0:8])
