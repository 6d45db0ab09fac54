"""Which detections of two tiles are one cell, or parts of one."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ..structures.run_sets import areas, areas_within, intersection_areas, select_runs
from .detections import Detections
from .tile_grid import Tile, TileGrid


@dataclass(frozen=True)
class Links:
    """L pairs of detections of different tiles that share a cell.

    Attributes:
        first: (L,) int64, an index of the detections; the whole one, where one of the two is.
        second: (L,) int64.
        strengths: (L,) float64 in (0, 1]. Between two whole cells the IoU of their masks; between a
            whole and a cut one the share of the cut one that the whole one covers; between two cut
            ones the share of the smaller, within what both tiles see, that the other one covers.
    """

    first: np.ndarray
    second: np.ndarray
    strengths: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, indices: np.ndarray) -> Links:
        return Links(*(getattr(self, field.name)[indices] for field in fields(self)))

    def cat(self, other: Links) -> Links:
        """Return these links and then those of ``other``."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Links(*(np.concatenate(pair) for pair in pairs))


NO_LINKS = Links(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True)
class _Pairs:
    """P candidates: where each tile sees the other's cells, and what brings the first one there."""

    first: np.ndarray
    second: np.ndarray
    first_zones: np.ndarray
    second_zones: np.ndarray
    shifts: np.ndarray


def find_links(detections: Detections, num_known: int, grid: TileGrid, min_shared: float) -> Links:
    """Compare detections with those of neighbouring tiles, where their boxes meet.

    Two whole cells are linked where the masks share at least ``min_shared`` of the smaller one, a
    whole and a cut one where they share as much of the cut one, two cut ones where they share as
    much of the smaller one within the overlap of both tiles. Where tiles do not overlap, a cut cell
    is moved by one pixel across the border before it is compared.

    Args:
        detections: N, of any tiles.
        num_known: the first so many have been compared with each other before.
        grid: the tiles.
        min_shared: in (0, 1].
    """
    parts = [
        _pairs_of(detections, tiles, grid) for tiles in _tile_pairs(detections, num_known, grid)
    ]
    if not parts:
        return NO_LINKS
    pairs = _Pairs(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(_Pairs)))
    shared = intersection_areas(detections.runs, pairs.first, pairs.second, pairs.shifts)
    area = areas(detections.runs)
    # The whole one first; a cell moved across a border is cut, as is what it meets there.
    swap = detections.whole[pairs.second] & ~detections.whole[pairs.first]
    first = np.where(swap, pairs.second, pairs.first)
    second = np.where(swap, pairs.first, pairs.second)
    both = np.asarray(detections.whole[second])
    none = np.asarray(~detections.whole[first])

    limits = area[second].copy()
    limits[both] = np.minimum(area[first], area[second])[both]
    limits[none] = np.minimum(
        areas_within(select_runs(detections.runs, pairs.first[none]), pairs.first_zones[none]),
        areas_within(select_runs(detections.runs, pairs.second[none]), pairs.second_zones[none]),
    )
    linked = np.asarray((shared > 0) & (shared >= min_shared * limits))
    linked &= none | (pairs.shifts == 0)
    limits[both] = (area[first] + area[second] - shared)[both]
    return Links(first, second, shared / np.maximum(limits, 1))[linked]


def _tile_pairs(detections: Detections, num_known: int, grid: TileGrid) -> list[tuple[Tile, Tile]]:
    """Neighbouring tiles with detections, at least one of them new; the lower number first."""
    new = np.unique(detections.tiles[num_known:])
    present = set(np.unique(detections.tiles).tolist())
    later = [grid.tile(*divmod(number, grid.num_columns)) for number in new.tolist()]
    return [
        (before, tile)
        for tile in later
        for before in grid.neighbours_before(tile)
        if before.number in present
    ]


def _pairs_of(detections: Detections, tiles: tuple[Tile, Tile], grid: TileGrid) -> _Pairs:
    """Detections of two tiles whose boxes meet where both tiles look."""
    (low0, high0, shift_x), (low1, high1, shift_y) = (
        _shared_interval(tiles[0].left, tiles[0].width, tiles[1].left, tiles[1].width),
        _shared_interval(tiles[0].top, tiles[0].height, tiles[1].top, tiles[1].height),
    )
    zone = np.array([low0, low1, high0, high1], np.int64)
    move = np.array([shift_x, shift_y] * 2, np.int64)
    indices = [np.flatnonzero(detections.tiles == tile.number) for tile in tiles]
    boxes = [detections.boxes[i] for i in indices]
    boxes[0] = boxes[0] + move
    near = [(b[:, :2] < zone[2:]).all(1) & (b[:, 2:] > zone[:2]).all(1) for b in boxes]
    indices = [i[n] for i, n in zip(indices, near, strict=True)]
    one, other = (b[n] for b, n in zip(boxes, near, strict=True))
    meet = (one[:, None, :2] < other[None, :, 2:]).all(2)
    meet &= (one[:, None, 2:] > other[None, :, :2]).all(2)
    only_in_a_corner = shift_x > 0 and shift_y > 0
    first, second = np.nonzero(meet & (not only_in_a_corner))
    return _Pairs(
        indices[0][first],
        indices[1][second],
        np.tile(zone - move, (len(first), 1)),
        np.tile(zone, (len(first), 1)),
        np.full(len(first), shift_x * grid.image_size[0] + shift_y),
    )


def _shared_interval(
    start: int, length: int, other_start: int, other_length: int
) -> tuple[int, int, int]:
    """What two intervals share once the first is moved, and by how much it is."""
    low, high = max(start, other_start), min(start + length, other_start + other_length)
    return (low, high, 0) if low < high else (low, low + 1, 1)
