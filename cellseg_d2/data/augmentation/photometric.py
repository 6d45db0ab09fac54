"""Changes of colour: brightness, contrast, saturation, hue, gamma, and torchvision's jitter.

Images are uint8 RGB (H, W, 3), in and out. Results are rounded to the nearest level, where
torchvision and albumentations cut fractions off, so they differ from theirs by up to one level.
What treats a level the same wherever it stands is a table of 256 entries.

The definitions are those of ``torchvision.transforms.v2.functional`` and of albumentations 1.x.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

from .photometric_base import (
    PhotometricAugmentation,
    PhotometricTransform,
    Range,
    check_range,
    check_share,
    map_strips,
)

_LEVELS = np.arange(256, dtype=np.float64)
_GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in torchvision and OpenCV


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    return cv2.LUT(image, np.rint(np.clip(table, 0, 255)).astype(np.uint8))


class BrightnessTransform(PhotometricTransform):
    """Multiply every level by ``factor``, 0 (black) or more; 1 changes nothing."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def change(self, image: np.ndarray) -> np.ndarray:
        """Return the brighter or darker image."""
        return _look_up(image, _LEVELS * self.factor)


class ContrastTransform(PhotometricTransform):
    """Scale the distance of every level from the image's mean grey by ``factor``, 0 or more."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def change(self, image: np.ndarray) -> np.ndarray:
        """Return the image of more or less contrast."""
        mean = float(np.dot(cv2.mean(image)[:3], _GREY_WEIGHTS))
        return _look_up(image, self.factor * _LEVELS + (1 - self.factor) * mean)


class SaturationTransform(PhotometricTransform):
    """Scale the distance of every pixel from its own grey by ``factor``; 0 is a grey image."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def change(self, image: np.ndarray) -> np.ndarray:
        """Return the more or less colourful image; grey pixels keep their level."""
        matrix = self.factor * np.eye(3) + (1 - self.factor) * _GREY_WEIGHTS
        return cv2.transform(image, matrix.astype(np.float32))


class HueTransform(PhotometricTransform):
    """Turn the hue by ``shift`` of a full turn, -0.5 to 0.5, value and saturation kept (HSV).

    Computed in float32: OpenCV's 8-bit HSV, which albumentations uses, has 180 hues and so moves
    colours by up to 6 levels even where the shift is 0.
    """

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def change(self, image: np.ndarray) -> np.ndarray:
        """Return the image of other hues; grey pixels keep their level."""
        # OpenCV takes hues beyond 360 degrees, and one positive turn spares it the negative ones.
        degrees = 360 * (self.shift % 1)

        def turn(strip: np.ndarray) -> np.ndarray:
            hsv: np.ndarray = cv2.cvtColor(strip.astype(np.float32), cv2.COLOR_RGB2HSV)
            hsv[..., 0] += degrees
            return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))

        return map_strips(image, turn)


class GammaTransform(PhotometricTransform):
    """Raise every level, as a share of 255, to the power ``gamma``; above 1 darkens."""

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def change(self, image: np.ndarray) -> np.ndarray:
        """Return the image with 0 and 255 as they were."""
        return _look_up(image, 255 * (_LEVELS / 255) ** self.gamma)


class BrightnessContrastTransform(PhotometricTransform):
    """Multiply every level by ``contrast``, then add ``brightness`` of a reference level.

    Args:
        contrast: factor, 0 or more, about level 0 (not about the mean, as ``ContrastTransform``).
        brightness: share added, negative to darken.
        by_max: whether the reference is 255, or else the mean level after the multiplication.
    """

    def __init__(self, contrast: float, brightness: float, by_max: bool = True) -> None:
        super().__init__()
        self.contrast = contrast
        self.brightness = brightness
        self.by_max = by_max

    def change(self, image: np.ndarray) -> np.ndarray:
        """Return the changed image."""
        reference = 255.0 if self.by_max else self.contrast * float(np.mean(cv2.mean(image)[:3]))
        return _look_up(image, self.contrast * _LEVELS + self.brightness * reference)


class Brightness(PhotometricAugmentation):
    """Multiply by a factor drawn from ``factor`` (lowest, highest; 0 or more)."""

    def __init__(self, factor: Range, prob: float = 1.0) -> None:
        super().__init__(prob)
        self.factor = check_range("factor", factor, 0)

    def draw(self) -> Transform:
        """Draw the factor."""
        return BrightnessTransform(self.draw_uniform(self.factor))


class Contrast(PhotometricAugmentation):
    """Change the contrast about the mean grey by a factor drawn from ``factor`` (0 or more)."""

    def __init__(self, factor: Range, prob: float = 1.0) -> None:
        super().__init__(prob)
        self.factor = check_range("factor", factor, 0)

    def draw(self) -> Transform:
        """Draw the factor."""
        return ContrastTransform(self.draw_uniform(self.factor))


class Saturation(PhotometricAugmentation):
    """Change the saturation by a factor drawn from ``factor`` (0 is grey, 1 as it was)."""

    def __init__(self, factor: Range, prob: float = 1.0) -> None:
        super().__init__(prob)
        self.factor = check_range("factor", factor, 0)

    def draw(self) -> Transform:
        """Draw the factor."""
        return SaturationTransform(self.draw_uniform(self.factor))


class Hue(PhotometricAugmentation):
    """Turn the hue by a shift drawn from ``shift``, in turns, -0.5 to 0.5."""

    def __init__(self, shift: Range, prob: float = 1.0) -> None:
        super().__init__(prob)
        self.shift = check_range("shift", shift, -0.5, 0.5)

    def draw(self) -> Transform:
        """Draw the shift."""
        return HueTransform(self.draw_uniform(self.shift))


class ColorJitter(PhotometricAugmentation):
    """Change brightness, contrast, saturation and hue, one after the other in a random order.

    torchvision's ``ColorJitter``, which albumentations 1.x follows. A strength of 0 leaves its
    change out.

    Args:
        brightness, contrast, saturation: strengths x, 0 or more; each factor is drawn from
            max(0, 1 - x) to 1 + x.
        hue: strength, 0 to 0.5 turns; the shift is drawn from -hue to hue.
        prob: probability of the whole jitter.
    """

    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.2,
        prob: float = 1.0,
    ) -> None:
        super().__init__(prob)
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        changes: list[tuple[Callable[[Range], PhotometricAugmentation], float]] = [
            (Brightness, brightness),
            (Contrast, contrast),
            (Saturation, saturation),
        ]
        self._parts: list[PhotometricAugmentation] = [
            change((max(0.0, 1 - strength), 1 + strength))
            for change, strength in changes
            if strength
        ]
        if hue:
            self._parts.append(Hue((-hue, hue)))

    def draw(self) -> Transform:
        """Draw the order, then each part's value."""
        order = np.random.permutation(len(self._parts))
        return T.TransformList([self._parts[i].draw() for i in order])


class BrightnessContrast(PhotometricAugmentation):
    """Multiply by 1 plus a draw and add another, albumentations' ``RandomBrightnessContrast``.

    Args:
        brightness: limit b, 0 to 1; a share from -b to b of the reference level is added.
        contrast: limit c, 0 to 1; the factor is drawn from 1 - c to 1 + c.
        by_max: whether the reference is level 255, or else the image's mean.
        prob: probability of a change.
    """

    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        by_max: bool = True,
        prob: float = 1.0,
    ) -> None:
        super().__init__(prob)
        self.brightness = check_share("brightness", brightness)
        self.contrast = check_share("contrast", contrast)
        self.by_max = by_max

    def draw(self) -> Transform:
        """Draw the factor, then the share."""
        contrast = self.draw_uniform((1 - self.contrast, 1 + self.contrast))
        brightness = self.draw_uniform((-self.brightness, self.brightness))
        return BrightnessContrastTransform(contrast, brightness, self.by_max)


class Gamma(PhotometricAugmentation):
    """Raise to a power drawn from ``gamma``, a ratio: albumentations' 80 to 120 % is 0.8 to 1.2."""

    def __init__(self, gamma: Range = (0.8, 1.2), prob: float = 1.0) -> None:
        super().__init__(prob)
        self.gamma = check_range("gamma", gamma, 0)

    def draw(self) -> Transform:
        """Draw the power."""
        return GammaTransform(self.draw_uniform(self.gamma))
