"""Outlines of masks along the edges of their pixels."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from matplotlib.path import Path as OutlinePath
from numpy.typing import NDArray

from ..export.rle_counts import decode_crop


def rle_outlines(rle: dict[str, Any]) -> list[NDArray[np.float64]]:
    """The outlines of one mask, which is decoded within its tight box only.

    OpenCV's contours run through the centres of the outermost pixels and so lie half a pixel
    within the mask. Here they are traced at twice the resolution, where each corner of a pixel has
    a subpixel of its own, and each point is moved out to that corner: the area within the rings is
    the mask exactly.

    Args:
        rle: a COCO RLE, {"size": [H, W], "counts": str or bytes}.

    Returns:
        one (P, 2) float64 array of x, y for each ring: pixel (x, y) is the square from (x, y) to
        (x + 1, y + 1). Rings of holes run the other way round; a pixel belongs to the mask where
        it is within an odd number of rings. Pixels that share a corner belong together.

    Raises:
        ValueError: the text of the RLE does not describe a mask of its size.
    """
    crop, corner = decode_crop(rle["counts"], (int(rle["size"][0]), int(rle["size"][1])))
    if crop.size == 0:
        return []
    doubled = np.repeat(np.repeat(crop, 2, axis=0), 2, axis=1)
    contours = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]
    offset = np.asarray(corner, np.float64)
    return [_without_repeats((np.asarray(c)[:, 0] + 1) // 2) + offset for c in contours]


def compound_path(rings: list[NDArray[np.float64]]) -> OutlinePath:
    """One path of all rings, so that holes stay open when it is filled."""
    vertices = [np.concatenate([ring, ring[:1]]) for ring in rings]
    codes = [
        np.array(
            [OutlinePath.MOVETO] + [OutlinePath.LINETO] * (len(ring) - 1) + [OutlinePath.CLOSEPOLY],
            OutlinePath.code_type,
        )
        for ring in rings
    ]
    return OutlinePath(np.concatenate(vertices), np.concatenate(codes))


def _without_repeats(points: NDArray[Any]) -> NDArray[Any]:
    return points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
