"""OpenCV's ``remap`` for images of any size, mirrored or filled beyond the frame."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

REMAP_LIMIT = 2**15 - 1
"""``cv2.remap`` keeps coordinates in 16 bits and refuses sides of so many pixels or more."""


Fill = Sequence[float] | None
"""Value of each channel beyond the frame; None mirrors about the outermost pixel centres."""


def remap(
    array: np.ndarray,
    map_x: np.ndarray,
    map_y: np.ndarray,
    interpolation: int,
    fill: Fill = None,
    limit: int = REMAP_LIMIT,
) -> np.ndarray:
    """Resample by a source for each output pixel.

    Where a side is ``limit`` pixels or longer, the output is cut into blocks, each resampled from
    the part of the input that it reaches into; the result is the same but for the rounding of
    coordinates.

    Args:
        array: (H, W) or (H, W, C) uint8 or float32.
        map_x: (H', W') float32, contiguous: the input column of each output pixel, as its centre.
        map_y: (H', W') float32, contiguous: the row.
        interpolation: ``cv2.INTER_NEAREST`` or ``cv2.INTER_LINEAR``.
        fill: what lies beyond the frame.
        limit: pixels, for tests.

    Returns:
        (H', W') or (H', W', C) of the array's type.
    """
    border, value = border_of(fill)
    if max(*array.shape[:2], *map_x.shape) < limit:
        found = cv2.remap(array, map_x, map_y, interpolation, borderMode=border, borderValue=value)
        return found.reshape(*map_x.shape, *array.shape[2:])
    if fill is None:
        map_x, map_y = (
            mirrored(v, side) for v, side in zip((map_x, map_y), array.shape[1::-1], strict=True)
        )
    found = np.empty((*map_x.shape, *array.shape[2:]), array.dtype)
    _remap_blocks(array, map_x, map_y, interpolation, fill or (0,), limit, found)
    return found


def _remap_blocks(
    array: np.ndarray,
    map_x: np.ndarray,
    map_y: np.ndarray,
    interpolation: int,
    fill: Sequence[float],
    limit: int,
    out: np.ndarray,
) -> None:
    """Halve the output until it and what it reaches into are small enough, then resample."""
    if not map_x.size:
        return
    x, y = (_reach(v, side) for v, side in zip((map_x, map_y), array.shape[1::-1], strict=True))
    if max(*map_x.shape, x.stop - x.start, y.stop - y.start) < limit:
        # A copy of the maps: relative to the part, and contiguous.
        part = remap(array[y, x], map_x - x.start, map_y - y.start, interpolation, fill, limit)
        out[...] = part
        return
    axis = int(map_x.shape[1] > map_x.shape[0])
    half = map_x.shape[axis] // 2
    for side in (slice(None, half), slice(half, None)):
        block = (slice(None),) * axis + (side,)
        _remap_blocks(array, map_x[block], map_y[block], interpolation, fill, limit, out[block])


def _reach(coordinates: np.ndarray, side: int) -> slice:
    """The input pixels that coordinates are interpolated from; at least one."""
    low = min(max(int(np.floor(coordinates.min())), 0), side - 1)
    return slice(low, max(min(int(np.floor(coordinates.max())) + 2, side), low + 1))


def mirrored(coordinates: np.ndarray, side: int) -> np.ndarray:
    """Return the coordinates inside the frame that show the same where pixels are mirrored.

    Args:
        coordinates: float32, any shape.
        side: pixels; the frame's pixel centres are 0 to ``side`` - 1.
    """
    if side == 1:
        return np.zeros_like(coordinates)
    period = np.float32(2 * (side - 1))
    folded = np.abs(coordinates) % period
    return np.minimum(folded, period - folded)


def border_of(fill: Fill) -> tuple[int, Sequence[float]]:
    """Return OpenCV's border mode and value for ``fill``, as in ``remap``."""
    if fill is None:
        return cv2.BORDER_REFLECT_101, (0,)
    return cv2.BORDER_CONSTANT, fill
