"""What a person reads of a geometric step that was drawn: "Rotate 12.3°", "Zoom ×1.07"."""

from __future__ import annotations

import math

import numpy as np

from .warp_maps import AffineMap, LensMap, PixelMap


def step_name(primitive: object, drawn: PixelMap) -> str:
    """Return the name of a primitive's class and what its map does, as far as a number says it.

    Args:
        primitive: what has drawn.
        drawn: its map. Of an affine one the rotation nearest to it, in degrees counter-clockwise,
            and the factor by which lengths grow; of a lens its strength.

    Returns:
        "" for a map that does nothing, such as none of Rot90's turns.
    """
    name = type(primitive).__name__
    if isinstance(drawn, LensMap):
        return f"{name} {drawn.strength:+.2f}"
    if not isinstance(drawn, AffineMap):
        return name
    matrix = drawn.matrix
    if np.array_equal(matrix, np.eye(3)):
        return ""
    area = float(np.linalg.det(matrix[:2, :2]))
    if area <= 0:  # mirrored
        return name
    degrees = math.degrees(math.atan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1]))
    # The map runs backward, from the output to the input: it shrinks where cells grow.
    factor = 1 / math.sqrt(area)
    turn = f" {degrees:.1f}".removesuffix(".0") + "°" if abs(degrees) >= 0.05 else ""
    growth = f" ×{factor:.2f}" if abs(factor - 1) >= 0.005 else ""
    return name + turn + growth
