"""Masks as polygons along the edges of their pixels, valid by the rules of simple features."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.int64]
"""(P, 2) corners x, y in pixels; the last one is joined to the first, which is not repeated."""


def mask_polygons(mask: NDArray[np.uint8], corner: tuple[int, int] = (0, 0)) -> list[list[Ring]]:
    """Trace a mask exactly: the pixels whose centres lie in the polygons are the mask's.

    Pixels that share an edge belong to one polygon; pixels that share no more than a corner belong
    to two, which touch there. So no ring meets itself and no hole cuts its polygon in two, as the
    OGC's Simple Feature Access (06-103r4, 6.1.11) asks and geometry libraries need.

    OpenCV's contours run through the centres of the outermost pixels. Here they are traced at twice
    the resolution, where each corner of a pixel has a subpixel of its own, and each point is moved
    out to that corner.

    Args:
        mask: (h, w) uint8, above 0 where the mask is.
        corner: x and y of the mask's upper left pixel in the image.

    Returns:
        One polygon for each 4-connected component, in the order of their first pixels row by row;
        of each the outer ring and then those of its holes. Pixel (x, y) is the square from (x, y)
        to (x + 1, y + 1). By the shoelace formula on x and y, outer rings have a positive area and
        holes a negative one. Corners where the outline goes straight on are left out.
    """
    if not mask.any():
        return []
    count, components = cv2.connectedComponentsWithAlgorithm(
        np.ascontiguousarray(mask > 0).view(np.uint8), 4, cv2.CV_32S, cv2.CCL_SAUF
    )
    if count == 2:
        return [_trace(components.astype(np.uint8), corner)]
    return [_trace((components == label).astype(np.uint8), corner) for label in range(1, count)]


def _trace(component: NDArray[np.uint8], corner: tuple[int, int]) -> list[Ring]:
    """The outer ring and the holes of one 4-connected component."""
    doubled = np.repeat(np.repeat(component, 2, axis=0), 2, axis=1)
    contours = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]
    rings = [_ring(np.asarray(contour)[:, 0], corner) for contour in contours]
    areas = [signed_area(ring) for ring in rings]
    order = np.argsort(-np.abs(areas), kind="stable")  # the outer ring surrounds all the others
    return [
        rings[index] if (areas[index] > 0) == (place == 0) else rings[index][::-1]
        for place, index in enumerate(order)
    ]


def _ring(points: NDArray[Any], corner: tuple[int, int]) -> Ring:
    ring = (points.astype(np.int64) + 1) // 2
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    after = np.roll(ring, -1, axis=0) - ring
    before = np.roll(after, 1, axis=0)
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return ring[turns] + np.asarray(corner, np.int64)


def signed_area(ring: Ring) -> float:
    """Return the area in a ring by the shoelace formula.

    Args:
        ring: (P, 2) corners x, y.

    Returns:
        Square pixels; positive where x turns towards y.
    """
    x, y = ring[:, 0], ring[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2
