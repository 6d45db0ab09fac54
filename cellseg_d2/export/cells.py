"""The cells of an answer one by one, numbered the same in every file that describes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from detectron2.structures import Instances
from numpy.typing import NDArray

from ..structures.distinct import distinct_instances
from .rle_counts import decode_crop


@dataclass(frozen=True)
class Cell:
    """One predicted cell, its mask held within its tight box only.

    Attributes:
        id: from 1 within the image; the id in the label TIFFs, the GeoJSON and the measurements.
        category: class, from 0.
        score: in [0, 1].
        mask: (h, w) uint8 of 0 and 1; every edge of it holds a pixel of the cell.
        corner: x and y of the mask's upper left pixel in the image.
    """

    id: int
    category: int
    score: float
    mask: NDArray[np.uint8]
    corner: tuple[int, int]


def select_cells(instances: Instances, score_threshold: float) -> Instances:
    """Return the instances that are shown: those that are sure enough, and one for each cell.

    See ``distinct_instances``: of two that cover each other for the most part, whatever their
    classes, the better is shown.

    Args:
        instances: N instances with ``scores`` and ``pred_masks`` (``RLEMasks``).
        score_threshold: the lowest score that is kept.

    Returns:
        Instances in the order of the given ones.
    """
    if not len(instances):
        return instances
    sure = instances[instances.scores >= score_threshold]
    scores = sure.scores.cpu().numpy()
    return sure[distinct_instances(sure.pred_masks.rles, scores, sure.image_size)]


def iter_cells(instances: Instances, first_id: int = 1) -> Iterator[Cell]:
    """Decode the masks of one part of an image's answer, one at a time.

    Args:
        instances: with ``scores``, ``pred_classes`` and ``pred_masks`` (``RLEMasks``), none of them
            empty.
        first_id: id of the first cell; the others follow.

    Yields:
        One ``Cell`` for each instance, in their order.

    Raises:
        ValueError: for an RLE that does not describe a mask of its size.
    """
    scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
    for index, rle in enumerate(instances.pred_masks.rles):
        mask, corner = decode_crop(rle["counts"], instances.image_size)
        yield Cell(first_id + index, classes[index], scores[index], mask, corner)
