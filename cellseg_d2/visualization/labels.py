"""Where labels go among hundreds of cells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class LabelPlacer:
    """Finds room for one label after the other, beside its box and inside the picture.

    Args:
        size: (H, W) of the picture, in its own pixels.
        scale: the picture's pixels for one pixel of the image.
    """

    def __init__(self, size: tuple[int, int], scale: float) -> None:
        self._taken = np.zeros(size, bool)
        self._scale = scale

    def keep_free(self, boxes: NDArray[np.float64]) -> None:
        """Keeps labels off the middle of cells, half of a box's width and height.

        Args:
            boxes: (N, 4), XYXY in image pixels.
        """
        quarter = (boxes[:, 2:] - boxes[:, :2]) / 4
        middles = np.hstack([boxes[:, :2] + quarter, boxes[:, 2:] - quarter]) * self._scale
        for x0, y0, x1, y1 in np.maximum(np.round(middles), 0).astype(int).tolist():
            self._taken[y0:y1, x0:x1] = True

    def place(
        self, box: NDArray[np.float64], extent: tuple[float, float], overlap: bool = False
    ) -> tuple[float, float] | None:
        """Takes the first free place above, below, right or left of a box.

        Args:
            box: (x0, y0, x1, y1) in image pixels.
            extent: the label's (width, height) in the picture's pixels.
            overlap: whether the label is to cover others where there is no room.

        Returns:
            the label's upper left corner in image pixels; None where there is no room.
        """
        height, width = self._taken.shape
        w, h = int(np.ceil(extent[0])), int(np.ceil(extent[1]))
        if not overlap and (w > width or h > height):
            return None
        x0, y0, x1, y1 = np.round(np.asarray(box, np.float64) * self._scale).astype(int).tolist()
        # Along the upper and lower side a label may be pushed back into the picture.
        left = min(max(x0, 0), max(width - w, 0))
        candidates = [(left, y0 - h - 1), (left, y1 + 1), (x1 + 1, y0), (x0 - w - 1, y0)]
        inside = [(x, y) for x, y in candidates if 0 <= x <= width - w and 0 <= y <= height - h]
        for x, y in inside:
            if not self._taken[y : y + h, x : x + w].any():
                break
        else:
            if not overlap:
                return None
            x, y = inside[0] if inside else (left, 0)
        self._taken[y : y + h, x : x + w] = True
        return x / self._scale, y / self._scale
