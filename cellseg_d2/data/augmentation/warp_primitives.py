"""Geometric steps that ``Warp`` composes; each draws a backward map (``warp_maps``).

A primitive is an augmentation by itself as well.
"""

from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform

from .warp_maps import (
    AffineMap,
    GridMap,
    LensMap,
    PixelMap,
    about_center,
    compose,
    crop_map,
    elastic_map,
    rotation,
)
from .warp_transforms import symmetry_map, warp_transform


class WarpPrimitive(T.Augmentation, metaclass=ABCMeta):
    """A geometric step drawn with probability ``prob``.

    Args:
        prob: 0 to 1.
    """

    def __init__(self, prob: float) -> None:
        super().__init__()
        check(0 <= prob <= 1, self, f"prob {prob}", "0 to 1")
        self.prob = prob

    @abstractmethod
    def draw(self, height: int, width: int) -> PixelMap:
        """Draw the map of this step, whatever its probability, for an input of that size."""

    def choose_or_skip(self) -> WarpPrimitive | None:
        """Return this primitive with probability ``prob``, None otherwise; see ``OneOf``'s."""
        return self if self._rand_range() < self.prob else None

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw this step alone, mirrored beyond the frame."""
        if self.choose_or_skip() is None:
            return NoOpTransform()
        height, width = image.shape[:2]
        return warp_transform(compose([self.draw(height, width)]), (height, width))


class HFlip(WarpPrimitive):
    """Left and right exchanged."""

    def __init__(self, prob: float = 0.5) -> None:
        super().__init__(prob)

    def draw(self, height: int, width: int) -> PixelMap:
        """Return the flip."""
        return symmetry_map((height, width), transpose=False, flip_x=True, flip_y=False)


class VFlip(WarpPrimitive):
    """Top and bottom exchanged."""

    def __init__(self, prob: float = 0.5) -> None:
        super().__init__(prob)

    def draw(self, height: int, width: int) -> PixelMap:
        """Return the flip."""
        return symmetry_map((height, width), transpose=False, flip_x=False, flip_y=True)


class Rot90(WarpPrimitive):
    """A number of quarter turns counter-clockwise (``numpy.rot90``); H and W change places.

    Args:
        prob: of drawing.
        turns: the numbers to draw from, each as likely. albumentations, too, draws 0 to 3.
    """

    def __init__(self, prob: float = 0.5, turns: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__(prob)
        check(len(turns) > 0, self, "no turns", "at least one number of quarter turns")
        self.turns = turns

    def draw(self, height: int, width: int) -> PixelMap:
        """Draw the number of turns."""
        turns = self.turns[int(self._rand_range(len(self.turns)))] % 4
        # A turn is a transposition with one flip: up and down after it for 1, left and right for 3.
        return symmetry_map(
            (height, width),
            transpose=turns in (1, 3),
            flip_x=turns in (2, 3),
            flip_y=turns in (1, 2),
        )


class Rotate(WarpPrimitive):
    """A rotation about the centre; the frame keeps its size.

    Args:
        limit: degrees; the angle is uniform in [-limit, limit], positive counter-clockwise.
        prob: of drawing.
    """

    def __init__(self, limit: float, prob: float = 0.5) -> None:
        super().__init__(prob)
        check(limit >= 0, self, f"limit {limit}", "at least 0")
        self.limit = limit

    def draw(self, height: int, width: int) -> PixelMap:
        """Draw the angle."""
        return about_center(height, width, rotation(_symmetric(self, self.limit)))


class Zoom(WarpPrimitive):
    """A change of scale about the centre; the frame keeps its size.

    Args:
        low, high: the factor is uniform between them; above 1 cells grow.
        prob: of drawing.
    """

    def __init__(self, low: float, high: float, prob: float = 0.5) -> None:
        super().__init__(prob)
        check(0 < low <= high, self, f"{low} to {high}", "0 < low <= high")
        self.low = low
        self.high = high

    def draw(self, height: int, width: int) -> PixelMap:
        """Draw the factor."""
        factor = float(self._rand_range(self.low, self.high))
        return about_center(height, width, np.eye(2) / factor)


class ResizedCrop(WarpPrimitive):
    """A crop at random, stretched back to the input's size.

    Args:
        area: (low, high), the crop's share of the input's area, uniform; at most 1.
        ratio: (low, high), the crop's width / height divided by the input's, log-uniform over what
            fits into the input. So a crop stretches cells by at most this much in images of any
            shape; torchvision's absolute ratio would make a square of every oblong.
        prob: of drawing.
    """

    def __init__(
        self, area: tuple[float, float], ratio: tuple[float, float], prob: float = 0.5
    ) -> None:
        super().__init__(prob)
        check(0 < area[0] <= area[1] <= 1, self, f"area {area}", "0 < low <= high <= 1")
        check(0 < ratio[0] <= ratio[1], self, f"ratio {ratio}", "0 < low <= high")
        self.area = area
        self.ratio = ratio

    def draw(self, height: int, width: int) -> PixelMap:
        """Draw the crop's size and place."""
        area = float(self._rand_range(*self.area))
        # Neither side may be longer than the input's: area <= ratio <= 1 / area.
        low, high = (min(max(r, area), 1 / area) for r in self.ratio)
        ratio = math.exp(self._rand_range(math.log(low), math.log(high)))
        share_x, share_y = (min(math.sqrt(s), 1.0) for s in (area * ratio, area / ratio))
        left = float(self._rand_range((1 - share_x) * width))
        top = float(self._rand_range((1 - share_y) * height))
        return crop_map(left, top, share_x, share_y, (height, width))


class Affine(WarpPrimitive):
    """Rotation, scale, shear and shift about the centre at once; the frame keeps its size.

    Args:
        rotate: degrees, uniform in [-rotate, rotate].
        scale: (low, high) factor, uniform, the same in x and y.
        shear: degrees below 45, uniform in [-shear, shear], drawn for x and for y.
        translate: share of the width and of the height, uniform in [-translate, translate].
        prob: of drawing.
    """

    def __init__(
        self,
        rotate: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float = 0.0,
        translate: float = 0.0,
        prob: float = 0.5,
    ) -> None:
        super().__init__(prob)
        check(0 < scale[0] <= scale[1], self, f"scale {scale}", "0 < low <= high")
        check(0 <= shear < 45, self, f"shear {shear}", "0 to below 45")
        check(min(rotate, translate) >= 0, self, f"{rotate}, {translate}", "at least 0")
        self.rotate = rotate
        self.scale = scale
        self.shear = shear
        self.translate = translate

    def draw(self, height: int, width: int) -> PixelMap:
        """Draw all four."""
        turn = rotation(_symmetric(self, self.rotate))
        factor = float(self._rand_range(*self.scale))
        shear = np.eye(2)
        shear[0, 1] = math.tan(math.radians(_symmetric(self, self.shear)))
        shear[1, 0] = math.tan(math.radians(_symmetric(self, self.shear)))
        shift_x = _symmetric(self, self.translate) * width
        shift_y = _symmetric(self, self.translate) * height
        shift = np.array([[1.0, 0, -shift_x], [0, 1, -shift_y], [0, 0, 1]])
        centered = about_center(height, width, turn @ shear / factor)
        return AffineMap(centered.matrix @ shift, centered.size)


class Elastic(WarpPrimitive):
    """Smooth random displacements (``elastic_map``).

    Args:
        alpha: pixels, the factor on the smoothed noise.
        sigma: pixels, of the Gaussian that smooths it.
        prob: of drawing.
    """

    def __init__(self, alpha: float, sigma: float, prob: float = 0.5) -> None:
        super().__init__(prob)
        check(alpha >= 0, self, f"alpha {alpha}", "at least 0")
        check(sigma > 0, self, f"sigma {sigma}", "above 0")
        self.alpha = alpha
        self.sigma = sigma

    def draw(self, height: int, width: int) -> PixelMap:
        """Draw the displacements."""
        seed = int(self._rand_range(2**53))
        return elastic_map((height, width), self.alpha, self.sigma, seed)


class GridDistortion(WarpPrimitive):
    """Bands of columns and of rows, each stretched by a factor of its own (``GridMap``).

    As albumentations 1.x, not normalised: the bands' widths need not sum to the image's, and what
    they lack or exceed is cut off or mirrored at the right and at the bottom.

    Args:
        steps: number of bands in x and in y.
        limit: below 1; a factor is uniform in [1 - limit, 1 + limit].
        prob: of drawing.
    """

    def __init__(self, steps: int = 5, limit: float = 0.3, prob: float = 0.5) -> None:
        super().__init__(prob)
        check(steps >= 1, self, f"steps {steps}", "at least 1")
        check(0 <= limit < 1, self, f"limit {limit}", "0 to below 1")
        self.steps = steps
        self.limit = limit

    def draw(self, height: int, width: int) -> PixelMap:
        """Draw the factors."""
        stretch_x, stretch_y = 1 + self._rand_range(-self.limit, self.limit, (2, self.steps))
        return GridMap(stretch_x, stretch_y, (height, width))


class OpticalDistortion(WarpPrimitive):
    """Barrel or pincushion distortion (``LensMap``), as albumentations 1.x.

    Args:
        limit: the strength k is uniform in [-limit, limit]. Below -.36 the corners fold back
            and show some tissue twice.
        shift: pixels, uniform in [-shift, shift] for x and for y. albumentations rounds it to whole
            pixels, so that its default of .05 does nothing.
        prob: of drawing.
    """

    def __init__(self, limit: float = 0.05, shift: float = 0.05, prob: float = 0.5) -> None:
        super().__init__(prob)
        check(limit >= 0, self, f"limit {limit}", "at least 0")
        check(shift >= 0, self, f"shift {shift}", "at least 0")
        self.limit = limit
        self.shift = shift

    def draw(self, height: int, width: int) -> PixelMap:
        """Draw strength and shift."""
        strength = _symmetric(self, self.limit)
        shift = _symmetric(self, self.shift), _symmetric(self, self.shift)
        return LensMap(strength, shift, (height, width))


def check(right: bool, owner: object, found: str, expected: str) -> None:
    """Raise ``ValueError`` naming the owner's class unless ``right``."""
    if not right:
        raise ValueError(f"{type(owner).__name__}: {found}; expected {expected}")


def _symmetric(augmentation: T.Augmentation, limit: float) -> float:
    return float(augmentation._rand_range(-limit, limit))
