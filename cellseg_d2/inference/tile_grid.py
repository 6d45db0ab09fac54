"""Overlapping tiles that cover an image, and the part of it that each one answers for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..errors import ConfigError

GRID_STEP = 32
"""Tiles begin at multiples of this many pixels: the stride of Detectron2's coarsest backbone stage.

A network then samples a tile at the places where it would sample the whole image.
"""


class Tile(NamedTuple):
    """One tile, in pixels of the image; ``number`` counts row by row."""

    number: int
    row: int
    column: int
    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class TileAxis:
    """Tiles along one axis of length L.

    Attributes:
        starts: (n,) int64, first pixels, ascending from 0.
        ends: (n,) int64, one past the last pixels, ascending to L.
    """

    starts: np.ndarray
    ends: np.ndarray

    @cached_property
    def core_bounds(self) -> np.ndarray:
        """(n + 1,) float64: tile i answers for what is centred in [bounds[i], bounds[i + 1]).

        A bound is the middle of the overlap of two neighbours. So what lies whole in one tile and
        is centred in the core of another lies whole in that other one, too.
        """
        middles = (self.starts[1:] + self.ends[:-1]) / 2
        return np.concatenate([[-np.inf], middles, [np.inf]])


@dataclass(frozen=True)
class TileGrid:
    """The tiles of an image of ``image_size`` (height, width)."""

    rows: TileAxis
    columns: TileAxis
    image_size: tuple[int, int]

    @property
    def num_rows(self) -> int:
        """Rows of tiles."""
        return len(self.rows.starts)

    @property
    def num_columns(self) -> int:
        """Tiles in a row."""
        return len(self.columns.starts)

    def tile(self, row: int, column: int) -> Tile:
        """Return one tile."""
        top, left = int(self.rows.starts[row]), int(self.columns.starts[column])
        height, width = int(self.rows.ends[row]) - top, int(self.columns.ends[column]) - left
        return Tile(row * self.num_columns + column, row, column, top, left, height, width)

    def neighbours_before(self, tile: Tile) -> list[Tile]:
        """Return the tiles of lower number that overlap a tile or lie against it."""
        right = tile.left + tile.width
        touching = np.flatnonzero(
            (self.columns.ends >= tile.left) & (self.columns.starts <= right)
        ).tolist()
        above = np.flatnonzero(self.rows.ends[: tile.row] >= tile.top).tolist()
        tiles = [self.tile(row, column) for row in above for column in touching]
        return tiles + [self.tile(tile.row, column) for column in touching if column < tile.column]

    def answers_for(self, tile: Tile, boxes: np.ndarray) -> np.ndarray:
        """Tell which boxes are centred in a tile's core.

        Args:
            tile: of this grid.
            boxes: (N, 4) XYXY in pixels of the image.

        Returns:
            (N,) bool; of all tiles exactly one says true of a box.
        """
        x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        x_bounds, y_bounds = self.columns.core_bounds, self.rows.core_bounds
        in_columns = (x_bounds[tile.column] <= x) & (x < x_bounds[tile.column + 1])
        return in_columns & (y_bounds[tile.row] <= y) & (y < y_bounds[tile.row + 1])

    def responsible_tile(self, box: np.ndarray) -> Tile:
        """Return the tile in whose core a box is centred.

        Args:
            box: (4,) XYXY in pixels of the image.
        """
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        row = np.searchsorted(self.rows.core_bounds, y, side="right") - 1
        column = np.searchsorted(self.columns.core_bounds, x, side="right") - 1
        return self.tile(int(row), int(column))

    def depths(self, tile: Tile, boxes: np.ndarray) -> np.ndarray:
        """Return how far boxes lie inside a tile.

        Args:
            tile: of this grid.
            boxes: (N, 4) XYXY in pixels of the image.

        Returns:
            (N,) float64, pixels between a box and the nearest side of the tile that is not the
            image's own; infinity where all sides are.
        """
        height, width = self.image_size
        right, bottom = tile.left + tile.width, tile.top + tile.height
        gaps = np.full((4, len(boxes)), np.inf)
        if tile.left > 0:
            gaps[0] = boxes[:, 0] - tile.left
        if tile.top > 0:
            gaps[1] = boxes[:, 1] - tile.top
        if right < width:
            gaps[2] = right - boxes[:, 2]
        if bottom < height:
            gaps[3] = bottom - boxes[:, 3]
        return gaps.min(axis=0)


def make_grid(image_size: tuple[int, int], tile_size: int, overlap: int) -> TileGrid:
    """Cover an image with tiles.

    Args:
        image_size: height and width in pixels.
        tile_size: largest side of a tile in pixels.
        overlap: pixels that neighbours share at least, less than ``tile_size``. It is rounded up so
            that tiles begin at multiples of ``GRID_STEP``, where they are large enough for that.

    Raises:
        ConfigError: for a tile size below 1, or an overlap that is negative or no smaller.
    """
    if tile_size < 1:
        raise ConfigError(f"TEST.TILE.SIZE is {tile_size}; tiles are at least 1 pixel wide")
    if not 0 <= overlap < tile_size:
        raise ConfigError(
            f"TEST.TILE.OVERLAP is {overlap}; it lies from 0 to below TEST.TILE.SIZE, {tile_size}"
        )
    height, width = image_size
    return TileGrid(
        split_axis(height, tile_size, overlap), split_axis(width, tile_size, overlap), image_size
    )


def split_axis(length: int, tile_size: int, overlap: int) -> TileAxis:
    """Place tiles along an axis: as few as cover it, of about one size, the last one the smallest.

    Args:
        length: of the axis in pixels, at least 1.
        tile_size: as in `make_grid`.
        overlap: as in `make_grid`.
    """
    if length <= tile_size:
        return TileAxis(np.zeros(1, np.int64), np.array([length], np.int64))
    longest_step = tile_size - overlap
    unit = GRID_STEP if longest_step >= GRID_STEP else 1
    longest_step -= longest_step % unit
    shared = tile_size - longest_step
    num_tiles = -(-(length - shared) // longest_step)
    # The shortest step that still covers the axis with as many tiles: so no tile is a mere strip.
    step = -(-(length - shared) // (num_tiles * unit)) * unit
    starts = step * np.arange(num_tiles, dtype=np.int64)
    return TileAxis(starts, np.minimum(starts + step + shared, length))
