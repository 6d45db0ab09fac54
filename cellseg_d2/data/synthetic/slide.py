"""A synthetic slide of any size, written tile by tile."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import tifffile

from ...checkpoint.files import replace_file
from .image import make_image

FIELD_SIDE = 1024
"""Height and width of the field that is drawn, in pixels."""

_TILE_SIDE = 256
_CELLS_PER_PIXEL = 600e-6  # as dense as `make_image` places them without trying for long


def write_slide(
    path: str | os.PathLike[str],
    size: tuple[int, int],
    seed: int = 0,
    *,
    compression: str | None = "deflate",
) -> None:
    """Write a tiled BigTIFF of tissue, in the memory of one field.

    One field is drawn. Mirrored at its edges and so repeated, it covers the slide without a seam,
    but its cells come again and again: a slide to measure time and memory on, not to train with.
    100 million pixels take about 20 s and, whatever their number, 60 MB.

    Args:
        path: of the file, which appears once it is complete.
        size: (H, W) in pixels.
        seed: the same seed gives the same pixels.
        compression: of the tiles of 256×256 pixels, as tifffile names it; None for none.

    Raises:
        ValueError: a size below 1.
    """
    if min(size) < 1:
        raise ValueError(f"size {tuple(size)}: both sides must be at least 1 pixel")
    height, width = (min(length, FIELD_SIDE) for length in size)
    field, _ = make_image(
        np.random.default_rng(seed), (height, width), round(_CELLS_PER_PIXEL * height * width)
    )
    with replace_file(path) as file:
        tifffile.imwrite(
            file,
            _tiles(field, size),
            shape=(*size, 3),
            dtype=np.uint8,
            tile=(_TILE_SIDE, _TILE_SIDE),
            compression=compression,
            photometric="rgb",
            bigtiff=True,
            metadata=None,
        )


def slide_window(
    field: npt.NDArray[np.uint8], top: int, left: int, height: int, width: int
) -> npt.NDArray[np.uint8]:
    """Return a window of a field that is mirrored at its edges without end.

    Args:
        field: (h, w, 3) uint8.
        top: first row, at least 0; the first field is not mirrored.
        left: first column.
        height: of the window in pixels.
        width: of the window in pixels.

    Returns:
        (height, width, 3) uint8.
    """
    rows = _mirrored(np.arange(top, top + height), field.shape[0])
    columns = _mirrored(np.arange(left, left + width), field.shape[1])
    return field[rows[:, None], columns]


def _mirrored(positions: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """0 … length - 1, length - 1 … 0, and so on."""
    phase = positions % (2 * length)
    return np.minimum(phase, 2 * length - 1 - phase)


def _tiles(field: npt.NDArray[np.uint8], size: tuple[int, int]) -> Iterator[npt.NDArray[np.uint8]]:
    """The tiles of a slide, row by row, those at the edges filled up."""
    for top in range(0, size[0], _TILE_SIDE):
        for left in range(0, size[1], _TILE_SIDE):
            yield slide_window(field, top, left, _TILE_SIDE, _TILE_SIDE)
