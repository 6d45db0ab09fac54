"""Where in an image a cell may be pasted: places worth trying, and the rule that decides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np

GRID = 4
"""Pixels between neighbouring places of the search: a quarter of a lymphocyte."""

FEWEST_PLACES = 64
"""Places to choose among, of least cover, where fewer are sure to hold."""

_ID_BINS = 2**15
_TAKEN = 8.0  # instances' worth of cover, for each grid square on a pasted cell
_ROUNDING = 1e-3  # of a correlation by Fourier transform
_NEIGHBOURHOOD = 32  # pixels around a pasted cell, in which most of its neighbours lie whole

Window = tuple[slice, slice]


class PasteRoom:
    """An image's instances, of which no more than a share may be covered by what is pasted.

    Neither the search for places nor the check of one goes through the instances: their number
    changes no cost.

    Args:
        label_maps: list of (H, W) int32, 0 the background.
        image_size: (H, W).
        max_cover: largest share, in [0, 1], of an instance's pixels that may be covered.
    """

    def __init__(
        self, label_maps: Sequence[np.ndarray], image_size: tuple[int, int], max_cover: float
    ) -> None:
        self.label_maps = label_maps
        self.image_size = image_size
        self.max_cover = max_cover
        self._taken = np.zeros(image_size, bool)
        self._covered: list[dict[int, int]] = [defaultdict(int) for _ in label_maps]
        self._cost = self._shares()

    def _shares(self) -> np.ndarray:
        """The share of its instance that the middle pixel of each grid square is, summed.

        It decides which places are tried and no more, so that one pixel in ``GRID``² is enough, and
        ids that share their low bits may count as one.

        Returns:
            (ceil(H / GRID), ceil(W / GRID)) float32.
        """
        rows, columns = (
            np.minimum(np.arange(GRID // 2, side + GRID // 2, GRID), side - 1)
            for side in self.image_size
        )
        shares = np.zeros((len(rows), len(columns)), np.float32)
        for label_map in self.label_maps:
            sampled = label_map[rows][:, columns]
            bins = (sampled & (_ID_BINS - 1)) + (sampled > 0) * np.int32(_ID_BINS)
            counts = np.bincount(bins.ravel())
            weights = (1 / np.maximum(counts, 1)).astype(np.float32)
            weights[0] = 0  # the background's
            shares += weights[bins]
        return shares

    def places(self, mask: np.ndarray) -> np.ndarray:
        """Return the places where pasting ``mask`` is likely to be allowed.

        The shares that it would cover of all instances are added up, by a correlation: where the
        sum is at most ``max_cover``, each of them is. Where fewer than ``FEWEST_PLACES`` are such,
        so many of the least sum are returned: there several instances may each lose a little.

        Args:
            mask: (h, w) bool.

        Returns:
            (K,) int64, ascending numbers of places, for ``window_at``; none for a mask larger than
            the image.
        """
        if mask.shape[0] > self.image_size[0] or mask.shape[1] > self.image_size[1]:
            return np.zeros(0, np.int64)
        template = cv2.resize(
            mask.astype(np.float32), grid_size(mask.shape)[::-1], interpolation=cv2.INTER_AREA
        )
        cover = cv2.matchTemplate(self._cost, template, cv2.TM_CCORR).ravel()
        limit = self.max_cover + _ROUNDING
        if np.count_nonzero(cover <= limit) < FEWEST_PLACES:
            limit = max(limit, least(cover, FEWEST_PLACES))
        return np.flatnonzero(cover <= limit)

    def window_at(
        self, place: int, mask_size: tuple[int, int], offset: tuple[int, int] = (0, 0)
    ) -> Window:
        """Return the rows and columns that a mask takes at a place.

        Args:
            place: one of ``places``.
            mask_size: (h, w) of the mask.
            offset: y and x, 0 to ``GRID`` - 1, which pixel of the grid's square; cut at the
                image's border.
        """
        columns = grid_size(self.image_size)[1] - grid_size(mask_size)[1] + 1
        corner = (
            min(max(GRID * index + shift - GRID // 2, 0), image_side - side)
            for index, shift, image_side, side in zip(
                divmod(place, columns), offset, self.image_size, mask_size, strict=True
            )
        )
        rows, columns_ = (
            slice(start, start + side) for start, side in zip(corner, mask_size, strict=True)
        )
        return rows, columns_

    def take(self, mask: np.ndarray, window: Window) -> bool:
        """Cover what lies under a mask, where that may be.

        Args:
            mask: (h, w) bool.
            window: the rows and columns it takes, inside the image.

        Returns:
            Whether it was allowed: no pixel was taken before, and no instance, of whatever label
            map, loses more than its share to all that was taken so far.
        """
        if self._taken[window][mask].any():
            return False
        lost: list[tuple[dict[int, int], int, int]] = []
        for label_map, covered in zip(self.label_maps, self._covered, strict=True):
            below = label_map[window][mask]
            ids, counts = np.unique(below[below > 0], return_counts=True)
            for cell, count in zip(ids.tolist(), counts.tolist(), strict=True):
                total = covered[cell] + count
                if not self._may_lose(label_map, cell, total, window):
                    return False
                lost.append((covered, cell, total))
        for covered, cell, total in lost:
            covered[cell] = total
        self._taken[window] |= mask
        self._mark(window)
        return True

    def _may_lose(self, label_map: np.ndarray, cell: int, lost: int, window: Window) -> bool:
        # An instance is at least as large as what of it lies near: the whole image is looked at
        # only where that is too little.
        rows, columns = (
            slice(max(side.start - _NEIGHBOURHOOD, 0), side.stop + _NEIGHBOURHOOD)
            for side in window
        )
        return any(
            # The epsilon: a share of 0.29 of 100 pixels is 29 of them, not 28.999….
            lost <= int(self.max_cover * np.count_nonzero(region == cell) + 1e-9)
            for region in (label_map[rows, columns], label_map)
        )

    def _mark(self, window: Window) -> None:
        """Make grid squares on pasted cells the last to be tried."""
        rows, columns = (slice(side.start // GRID, -(-side.stop // GRID)) for side in window)
        around = self._taken[
            rows.start * GRID : rows.stop * GRID, columns.start * GRID : columns.stop * GRID
        ]
        blocks = np.maximum.reduceat(around, range(0, around.shape[0], GRID), axis=0)
        blocks = np.maximum.reduceat(blocks, range(0, around.shape[1], GRID), axis=1)
        self._cost[rows, columns][blocks] = _TAKEN


def grid_size(size: tuple[int, ...]) -> tuple[int, int]:
    """Return how many grid squares an array of (H, W) pixels reaches into, down and across."""
    return -(-size[0] // GRID), -(-size[1] // GRID)


def least(values: np.ndarray, count: int) -> float:
    """Return the ``count``-th smallest of non-negative values, or the largest of fewer.

    A partial sort of all would take twenty times as long as to count those below a bound.
    """
    bound = 0.05
    while np.count_nonzero(values <= bound) < min(count, len(values)):
        bound *= 1.5
    low = values[values <= bound]
    return float(np.partition(low, min(count, len(low)) - 1)[min(count, len(low)) - 1])
