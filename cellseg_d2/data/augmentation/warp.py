"""Geometric augmentations that compose into one resampling.

Each primitive (``warp_primitives``) draws a backward map; ``Warp`` draws several and composes them,
so that the image is interpolated once and its label maps are moved once. Where only flips and
quarter turns were drawn, pixels are copied and none is interpolated.

A composed map mirrors at the border of the original image alone: tissue that one step moves out of
the frame is still there for the next to bring back, where a chain of resamplings would show a
mirror image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform

from .warp_maps import PixelMap, compose
from .warp_names import step_name
from .warp_primitives import (
    Affine,
    Elastic,
    GridDistortion,
    HFlip,
    OpticalDistortion,
    ResizedCrop,
    Rot90,
    Rotate,
    VFlip,
    WarpPrimitive,
    Zoom,
    check,
)
from .warp_transforms import WarpTransform, warp_transform

__all__ = [
    "Affine",
    "Elastic",
    "GridDistortion",
    "HFlip",
    "OneOf",
    "OpticalDistortion",
    "ResizedCrop",
    "Rot90",
    "Rotate",
    "VFlip",
    "Warp",
    "WarpPrimitive",
    "Zoom",
]


class OneOf(WarpPrimitive):
    """One of several primitives, chosen in proportion to their own ``prob``.

    Args:
        primitives: what to choose from.
        prob: of choosing any; the chosen one is then always drawn.
    """

    def __init__(self, primitives: Sequence[WarpPrimitive], prob: float = 0.5) -> None:
        super().__init__(prob)
        total = sum(p.prob for p in primitives)
        check(total > 0, self, "no primitive of a prob above 0", "at least one")
        self.primitives = list(primitives)
        self._upper = np.cumsum([p.prob for p in primitives]) / total

    def choose(self) -> WarpPrimitive:
        """Draw which primitive."""
        chosen = int(np.searchsorted(self._upper, self._rand_range(), side="right"))
        # A cumulated sum may end a rounding error below 1.
        return self.primitives[min(chosen, len(self.primitives) - 1)].choose()

    def draw(self, height: int, width: int) -> PixelMap:
        """Choose a primitive and draw it."""
        return self.choose().draw(height, width)


class Warp(T.Augmentation):
    """Draws each of several primitives with its own probability and resamples once.

    Args:
        primitives: in the order in which they are to be applied.
    """

    def __init__(self, primitives: Sequence[WarpPrimitive]) -> None:
        super().__init__()
        self.primitives = list(primitives)

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw for a (H, W) or (H, W, C) image; the transform's ``names`` say what was drawn."""
        height, width = image.shape[:2]
        maps: list[PixelMap] = []
        names: list[str] = []
        for primitive in self.primitives:
            chosen = primitive.choose_or_skip()
            if chosen is not None:
                maps.append(chosen.draw(*(maps[-1].size if maps else (height, width))))
                names.append(step_name(chosen, maps[-1]))
        if not maps:
            return NoOpTransform()
        transform = warp_transform(compose(maps), (height, width))
        if isinstance(transform, WarpTransform):
            transform.names = tuple(filter(None, names))
        return transform

    def __repr__(self) -> str:
        return f"Warp({self.primitives})"
