"""Geometric augmentations that compose into one resampling.

Each primitive (``warp_primitives``) draws a backward map; ``Warp`` draws several and composes them,
so that the image is interpolated once and its label maps are moved once. Where only flips and
quarter turns were drawn, pixels are copied and none is interpolated.

A composed map reaches the border of the original image alone: tissue that one step moves out of the
frame is still there for the next to bring back, where a chain of resamplings would have lost it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform

from .choice import OneOf
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
    "OpticalDistortion",
    "ResizedCrop",
    "Rot90",
    "Rotate",
    "VFlip",
    "Warp",
    "WarpPrimitive",
    "Zoom",
]


Border = Literal["mirror", "background"]
"""What ``Warp`` shows beyond the frame."""

BORDERS: tuple[Border, ...] = get_args(Border)

_SAMPLED = 16  # one pixel in so many squared has the colour of all, near enough


class Warp(T.Augmentation):
    """Draws each of several primitives with its own probability and resamples once.

    Beyond the image's frame one of two borders is shown:

    - "mirror", the mirrored image and label maps, as by the reports' libraries. A cell near the
      frame is shown twice, and its mirror image carries its id: one in twenty ids of an image
      turned by 15 degrees then has two components, and one box around both.
    - "background", the mean colour of the pixels without a label, as background. No cell is shown
      twice or without its label, and no id is made up: what a detector should learn from.

    Args:
        primitives: in the order in which they are to be applied; a ``OneOf`` of primitives is one.
        border: "mirror" or "background".

    Raises:
        ValueError: for another border, or what is no warp.
    """

    def __init__(
        self,
        primitives: Sequence[WarpPrimitive | OneOf[WarpPrimitive]],
        border: Border = "mirror",
    ) -> None:
        super().__init__()
        check(border in BORDERS, self, f"border {border!r}", " or ".join(map(repr, BORDERS)))
        for primitive in _leaves(primitives):
            check(isinstance(primitive, WarpPrimitive), self, repr(primitive), "a warp")
        self.primitives = list(primitives)
        self.border: Border = border
        # What upstream hands to get_transform: to mirror, any input with an image will do.
        self.input_args = ("image", "label_maps") if border == "background" else ("image",)

    def get_transform(self, image: np.ndarray, label_maps: Sequence[np.ndarray] = ()) -> Transform:
        """Draw for a (H, W) or (H, W, C) image; the transform's ``names`` say what was drawn.

        Args:
            image: uint8 or float32.
            label_maps: (H, W) each, which say where the background is; not needed by "mirror".
        """
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
        fill = background_color(image, label_maps) if self.border == "background" else None
        transform = warp_transform(compose(maps), (height, width), fill)
        if isinstance(transform, WarpTransform):
            transform.names = tuple(filter(None, names))
        return transform

    def __repr__(self) -> str:
        return f"Warp({self.primitives}, border={self.border!r})"


def background_color(image: np.ndarray, label_maps: Sequence[np.ndarray]) -> list[float]:
    """Return the mean of each channel over pixels without a label, or over all if there are none.

    Args:
        image: (H, W) or (H, W, C).
        label_maps: (H, W) each; none leave all pixels without a label.
    """
    sampled = image[::_SAMPLED, ::_SAMPLED]
    labelled = np.zeros(sampled.shape[:2], bool)
    for label_map in label_maps:
        labelled |= label_map[::_SAMPLED, ::_SAMPLED] > 0
    pixels = sampled.reshape(labelled.size, -1)[labelled.all() | ~labelled.ravel()]
    color: list[float] = pixels.mean(axis=0).tolist()
    return color


def _leaves(augmentations: Iterable[T.Augmentation]) -> Iterator[T.Augmentation]:
    for augmentation in augmentations:
        if isinstance(augmentation, OneOf):
            yield from _leaves(augmentation.augmentations)
        else:
            yield augmentation
