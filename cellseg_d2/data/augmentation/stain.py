"""Jitter of histology's own colours: the amounts of haematoxylin, eosin and DAB.

Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution", Analytical
and Quantitative Cytology and Histology 23, 2001: by Beer and Lambert's law the absorbances of a
pixel in R, G and B are the amounts of the stains times the stains' own densities.

Tellez et al., "Whole-Slide Mitosis Detection in H&E Breast Histology Using PHH3 as a Reference to
Train Distilled Stain-Invariant Convolutional Networks", IEEE Transactions on Medical Imaging 37,
2018: each amount, of all three stains, is multiplied by a number from [1 - sigma, 1 + sigma], and
one from [-sigma, sigma] is added, as laboratories differ. They take sigma 0.05, and logarithms to
base e: S = -ln(P) inv(M), P' = exp(-S' M). Tellez et al., "Quantifying the effects of data
augmentation and stain color normalization in convolutional neural networks for computational
pathology", Medical Image Analysis 58, 2019, call sigma 0.05 "HED-light" and 0.2 "HED-strong".
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from fvcore.transforms.transform import Transform

from .photometric_base import PhotometricAugmentation, PhotometricTransform, check_share, map_strips

STAIN_DENSITIES = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Rows haematoxylin, eosin, DAB: densities in R, G, B, of unit length (Ruifrok and Johnston)."""

# A level of 0 stands for anything below a half; its middle keeps the absorbance finite.
_ABSORBANCE = -np.log(np.maximum(np.arange(256), 0.25) / 255).astype(np.float32)


class HEDTransform(PhotometricTransform):
    """Scale and shift the amount of each stain.

    Amounts may be negative, as no three stains reach every colour; they are kept, so that a scale
    of 1 and a shift of 0 change nothing.

    Args:
        scale: (3,) factors of haematoxylin, eosin and DAB, 0 or more.
        shift: (3,) amounts added to them, in absorbance to base e: a shift of 0.05 takes 5 % of the
            light in a channel where the stain's density is 1, from the background too.
    """

    def __init__(self, scale: Sequence[float], shift: Sequence[float]) -> None:
        super().__init__()
        self.scale = tuple(scale)
        self.shift = tuple(shift)

    def change(self, image: np.ndarray) -> np.ndarray:
        """Return the image as if stained with the changed amounts."""
        # Deconvolution, change and reconvolution are one affine map of the three absorbances.
        linear = np.linalg.inv(STAIN_DENSITIES) @ np.diag(self.scale) @ STAIN_DENSITIES
        offset = np.asarray(self.shift) @ STAIN_DENSITIES
        to_exponent = -np.column_stack([linear.T, offset]).astype(np.float32)

        def restain(strip: np.ndarray) -> np.ndarray:
            exponent = cv2.transform(cv2.LUT(strip, _ABSORBANCE), to_exponent)
            return cv2.convertScaleAbs(cv2.exp(exponent), alpha=255)

        return map_strips(image, restain)


class HEDJitter(PhotometricAugmentation):
    """Scale and shift the amount of each stain by its own small draws; HED-light by default.

    Args:
        scale: limit s, 0 to 1; each factor is drawn from 1 - s to 1 + s.
        shift: limit b, 0 to 1, in absorbance to base e; each shift is drawn from -b to b.
        prob: probability of a change.
    """

    def __init__(self, scale: float = 0.05, shift: float = 0.05, prob: float = 1.0) -> None:
        super().__init__(prob)
        self.scale = check_share("scale", scale)
        self.shift = check_share("shift", shift)

    def draw(self) -> Transform:
        """Draw the three factors, then the three shifts."""
        scale = self._rand_range(1 - self.scale, 1 + self.scale, 3)
        shift = self._rand_range(-self.shift, self.shift, 3)
        return HEDTransform(scale.tolist(), shift.tolist())
