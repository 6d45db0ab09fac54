"""Array types, bands and windows that placement and painting share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BAND_ROWS = 1024  # of a large image, worked on at a time

Float = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


def clip_window(
    corner: tuple[int, int], side: int, shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Clip a square window to the image.

    Args:
        corner: row and column of the window's top left pixel; may lie outside the image.
        side: the window's height and width in pixels.
        shape: (H, W) of the image.

    Returns:
        The slices of the part that both share: in the image, and in the window.
    """
    image, window = [], []
    for start, limit in zip(corner, shape, strict=True):
        low, high = max(start, 0), min(start + side, limit)
        image.append(slice(low, high))
        window.append(slice(low - start, high - start))
    return (image[0], image[1]), (window[0], window[1])
