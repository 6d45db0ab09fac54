"""Geometric transforms that keep every id of a label map intact.

Upstream's flips and crops slice the array and are exact as they are. Its ``ResizeTransform`` raises
on int32, so it has a counterpart here; everything that turns or bends is in :mod:`.warp`.
"""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform


class ResizeTransform(T.ResizeTransform):
    """Upstream's resize for images, nearest neighbour by pixel centres for label maps.

    Output pixel i shows input pixel ``floor((i + 1/2) * size / new_size)``, the one its centre
    falls into: OpenCV's ``INTER_NEAREST_EXACT``, without its 16-bit rounding where a centre falls
    on the edge of two pixels.
    """

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize a (H, W) label map of any integer type."""
        if segmentation.shape != (self.h, self.w):
            raise ValueError(f"label map of {segmentation.shape}, expected {(self.h, self.w)}")
        rows = _nearest_index(self.h, self.new_h)
        columns = _nearest_index(self.w, self.new_w)
        return segmentation[rows[:, None], columns[None, :]]


def _nearest_index(size: int, new_size: int) -> np.ndarray:
    # Integer arithmetic: floor((2i + 1) * size / (2 * new_size)) has no rounding to get wrong.
    return (2 * np.arange(new_size, dtype=np.int64) + 1) * size // (2 * new_size)


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Upstream's augmentation of this name, with a transform that is exact on label maps."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw a size and return the resize to it; nothing where the size stays."""
        resize = super().get_transform(image)
        if not isinstance(resize, T.ResizeTransform):
            return resize
        # A strip of 1x10,000 pixels scaled to fit would round to no height at all.
        new_h, new_w = max(resize.new_h, 1), max(resize.new_w, 1)
        if (resize.h, resize.w) == (new_h, new_w):
            return NoOpTransform()
        return ResizeTransform(resize.h, resize.w, new_h, new_w, resize.interp)


class Scale(T.Augmentation):
    """Resize by a factor, whatever the image's size.

    Args:
        factor: of both sides, above 0.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the resize; sides are rounded to whole pixels, at least 1."""
        height, width = image.shape[:2]
        new_h, new_w = (max(1, round(self.factor * side)) for side in (height, width))
        if (height, width) == (new_h, new_w):
            return NoOpTransform()
        return ResizeTransform(height, width, new_h, new_w)
