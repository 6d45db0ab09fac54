"""One synthetic image and the instance masks that fit it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .arrays import Ids
from .cells import KINDS
from .painting import paint_cells, paint_stroma, to_light
from .placement import place_cells

CLASS_WEIGHTS = (0.42, 0.34, 0.13, 0.11)


def make_image(
    rng: np.random.Generator,
    size: tuple[int, int],
    num_cells: int,
    *,
    class_weights: Sequence[float] = CLASS_WEIGHTS,
    scale: float = 1.0,
    overlap: float = 0.2,
) -> tuple[npt.NDArray[np.uint8], Ids]:
    """Draw one image of tissue with its instance masks.

    Many cells touch a neighbour and some overlap one, in the same class or another. Within a class
    the later cell takes the pixels, which cuts some instances in two; a cell that loses all its
    pixels is dropped. Classes may overlap in pixels. About 0.6 s for 600 cells in 1000 x 1000.

    Args:
        rng: the source of all randomness; the same state gives the same bytes.
        size: (H, W) in pixels, each at least 1.
        num_cells: cells to place. Where no room is left for more, fewer are.
        class_weights: four relative frequencies, not negative, not all zero.
        scale: cell size relative to the released data, whose medians of the square root of the
            area are 26, 17, 24 and 45 px by class.
        overlap: the largest share, 0 to 1, of a cell that others may cover (spindle-like cells
            that cross may cover more). At 0 cells only touch.

    Returns:
        The image, uint8 RGB (H, W, 3), and the label maps, int32 (4, H, W), 0 for background. The
        ids of an image run on from class to class: 1 to n1 in the first, n1 + 1 to n2 in the next.

    Raises:
        ValueError: an argument is out of its range.
    """
    check_arguments(size, num_cells, class_weights, scale, overlap)
    cells, label_maps = place_cells(rng, size, num_cells, class_weights, scale, overlap)
    planes = paint_stroma(rng, size)
    paint_cells(rng, planes, cells, scale)
    return to_light(rng, planes), label_maps


def check_arguments(
    size: tuple[int, int],
    num_cells: int,
    class_weights: Sequence[float],
    scale: float,
    overlap: float,
) -> None:
    """Raise ValueError, naming the argument, where one of `make_image`'s is out of its range."""
    if min(size) < 1:
        raise ValueError(f"size {tuple(size)}: both sides must be at least 1 pixel")
    if num_cells < 0:
        raise ValueError(f"num_cells {num_cells}: must not be negative")
    if len(class_weights) != len(KINDS):
        raise ValueError(f"class_weights {tuple(class_weights)}: must be {len(KINDS)} numbers")
    if not all(math.isfinite(w) and w >= 0 for w in class_weights) or sum(class_weights) <= 0:
        raise ValueError(f"class_weights {tuple(class_weights)}: none negative, one above 0")
    if not (math.isfinite(scale) and 0.2 <= scale <= 20):
        raise ValueError(f"scale {scale}: must be from 0.2 to 20")
    if not 0 <= overlap <= 1:
        raise ValueError(f"overlap {overlap}: must be from 0 to 1")
