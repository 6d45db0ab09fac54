"""Where cells lie: beside each other, over each other, and alone; ids for their pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .arrays import BAND_ROWS, Ids, clip_window
from .cells import KINDS, Cell, draw_cell

_CELLS_PER_CROSSING = 8
_PLACEMENT_TRIES = 24


@dataclass
class _Canvas:
    """Who lies where: the uppermost cell of every pixel, and the pixels each cell has and shows."""

    label_maps: Ids
    top: Ids
    cells: list[Cell] = field(default_factory=list)
    areas: list[int] = field(default_factory=lambda: [0])
    visible: list[int] = field(default_factory=lambda: [0])
    by_category: list[list[int]] = field(default_factory=lambda: [[] for _ in KINDS])

    def add(self, cell: Cell, overlap: float, crossed: int = 0) -> bool:
        """Paint the cell where that hides no other beyond ``overlap``; say whether it did.

        ``crossed`` is the one cell, by id, that may be hidden beyond it.
        """
        corner, along, across = cell.local_axes(0.0)
        here, there = clip_window(corner, along.shape[0], self.top.shape)
        mask = cell.distance(along[there], across[there]) > 0
        area = int(mask.sum())
        if area == 0:
            return False
        top = self.top[here]
        ids, counts = np.unique(top[mask], return_counts=True)
        hidden = {int(i): int(n) for i, n in zip(ids, counts, strict=True) if i > 0}
        covered = sum(n for i, n in hidden.items() if i != crossed)
        if covered > overlap * area:
            return False
        for index, count in hidden.items():
            remaining = 0.3 if index == crossed else 1 - overlap
            if self.visible[index] - count < remaining * self.areas[index]:
                return False
        for index, count in hidden.items():
            self.visible[index] -= count
        self.cells.append(cell)
        self.areas.append(area)
        self.visible.append(area)
        top[mask] = len(self.cells)
        self.label_maps[cell.category][here][mask] = len(self.cells)
        self.by_category[cell.category].append(len(self.cells))
        return True


def place_cells(
    rng: np.random.Generator,
    size: tuple[int, int],
    num_cells: int,
    class_weights: Sequence[float],
    scale: float,
    overlap: float,
) -> tuple[list[Cell], Ids]:
    """Place cells and draw their masks; the arguments are those of `make_image`.

    Returns:
        The cells in the order in which they were placed, those painted over included, and the
        label maps, int32 (4, H, W), with ids that run on from class to class.
    """
    weights = np.asarray(class_weights, dtype=np.float64)
    canvas = _Canvas(np.zeros((len(KINDS), *size), np.int32), np.zeros(size, np.int32))
    spindles_uncrossed: list[int] = []
    for category in rng.choice(len(KINDS), num_cells, p=weights / weights.sum()):
        cell = draw_cell(rng, int(category), scale)
        if KINDS[cell.category].bend and overlap > 0:
            if spindles_uncrossed and rng.integers(_CELLS_PER_CROSSING) == 0:
                crossed = spindles_uncrossed.pop()
                other = canvas.cells[crossed - 1]
                cell.angle = other.angle + math.pi / 2 + rng.uniform(-0.5, 0.5)
                shift = rng.uniform(-0.25, 0.25, 2) * other.major
                cell.centre = (
                    float(np.clip(other.centre[0] + shift[0], 0, size[0] - 1)),
                    float(np.clip(other.centre[1] + shift[1], 0, size[1] - 1)),
                )
                if canvas.add(cell, overlap, crossed):
                    continue
        if _place_cell(rng, canvas, cell, size, overlap) and KINDS[cell.category].bend:
            spindles_uncrossed.append(len(canvas.cells))
    _number_by_class(canvas.label_maps, len(canvas.cells))
    return canvas.cells, canvas.label_maps


def _place_cell(
    rng: np.random.Generator, canvas: _Canvas, cell: Cell, size: tuple[int, int], overlap: float
) -> bool:
    """Try places beside other cells, of its own class for preference, and places anywhere."""
    for _ in range(_PLACEMENT_TRIES):
        beside = canvas.cells and rng.random() < 0.6
        if beside:
            own = canvas.by_category[cell.category]
            choice = own if own and rng.random() < 0.7 else range(1, len(canvas.cells) + 1)
            neighbour = canvas.cells[choice[int(rng.integers(len(choice)))] - 1]
            direction = rng.uniform(0, 2 * math.pi)
            reach = neighbour.radius(direction) + cell.radius(direction)
            # From just touching to overlapping by some of the smaller cell's width.
            reach -= 0.5 + overlap * rng.uniform(0, 1.0) * min(neighbour.minor, cell.minor)
            y = neighbour.centre[0] + reach * math.sin(direction)
            x = neighbour.centre[1] + reach * math.cos(direction)
        else:
            y, x = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        if 0 <= y < size[0] and 0 <= x < size[1]:
            cell.centre = (y, x)
            # Overlap is for cells beside a neighbour; those placed anywhere mostly stand alone.
            if canvas.add(cell, overlap if beside else 0.25 * overlap):
                return True
    return False


def _number_by_class(label_maps: Ids, num_cells: int) -> None:
    """Renumber in place so that ids run on across classes and none is without pixels."""
    offset = 0
    for label_map in label_maps:
        seen = np.zeros(num_cells + 1, dtype=bool)
        for start in range(0, len(label_map), BAND_ROWS):
            seen[label_map[start : start + BAND_ROWS]] = True
        seen[0] = False
        table = np.zeros(num_cells + 1, dtype=np.int32)
        table[seen] = np.arange(offset + 1, offset + 1 + np.count_nonzero(seen), dtype=np.int32)
        offset += int(np.count_nonzero(seen))
        for start in range(0, len(label_map), BAND_ROWS):
            label_map[start : start + BAND_ROWS] = table[label_map[start : start + BAND_ROWS]]
