"""Local contrast, blur and noise: CLAHE, Gaussian and median blur, Gaussian noise.

Images are uint8 RGB (H, W, 3), in and out, as in ``photometric``. The definitions are those of
albumentations 1.x; borders are reflected without repeating the outermost pixel, OpenCV's default.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
from fvcore.transforms.transform import Transform
from scipy.special import ndtri

from .photometric_base import (
    PhotometricAugmentation,
    PhotometricTransform,
    Range,
    check_range,
    map_strips,
)


class CLAHETransform(PhotometricTransform):
    """Equalise the lightness (L of CIELAB) tile by tile, contrast limited.

    Zuiderveld 1994, "Contrast Limited Adaptive Histogram Equalization", in OpenCV's form and on its
    8-bit CIELAB. Most of its 13 ms a megapixel are the conversions there and back, which also move
    greys by a level off grey.

    Args:
        clip_limit: multiple of a uniform histogram's bin, above which a bin is cut.
        tiles: number of tiles along each side of the image.
    """

    def __init__(self, clip_limit: float, tiles: int = 8) -> None:
        super().__init__()
        self.clip_limit = clip_limit
        self.tiles = tiles

    def change(self, image: np.ndarray) -> np.ndarray:
        """Return the equalised image."""
        lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
        clahe = cv2.createCLAHE(self.clip_limit, (self.tiles, self.tiles))
        cv2.insertChannel(clahe.apply(cv2.extractChannel(lab, 0)), lab, 0)
        return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


class GaussianBlurTransform(PhotometricTransform):
    """Convolve with a Gaussian.

    Args:
        kernel: odd size in pixels.
        sigma: in pixels; 0 for OpenCV's rule, 0.3 * ((kernel - 1) / 2 - 1) + 0.8.
    """

    def __init__(self, kernel: int, sigma: float = 0.0) -> None:
        super().__init__()
        self.kernel = kernel
        self.sigma = sigma

    def change(self, image: np.ndarray) -> np.ndarray:
        """Return the blurred image."""
        return cv2.GaussianBlur(image, (self.kernel, self.kernel), self.sigma)


class MedianBlurTransform(PhotometricTransform):
    """Take the median of each channel in squares of ``kernel`` (odd, 3 or 5) pixels a side."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def change(self, image: np.ndarray) -> np.ndarray:
        """Return the smoothed image."""
        return cv2.medianBlur(image, self.kernel)


class GaussianNoiseTransform(PhotometricTransform):
    """Add normal noise of mean 0, drawn for each pixel and channel by itself.

    Whole levels are drawn, by the inverse of the cumulative distribution from 16 random bits each:
    a level plus rounded noise is their rounded sum. A megapixel takes 7 ms (NumPy's global
    generator: 50 ms), and the noise ends at 4.3 standard deviations.

    Args:
        sigma: standard deviation in 8-bit levels.
        seed: of the noise; an image's shape and the seed decide it, whatever else draws.
    """

    def __init__(self, sigma: float, seed: int) -> None:
        super().__init__()
        self.sigma = sigma
        self.seed = seed

    def change(self, image: np.ndarray) -> np.ndarray:
        """Return the noisy image."""
        levels = np.rint(self.sigma * _normal_quantiles()).astype(np.int16)
        generator = np.random.Generator(np.random.SFC64(self.seed))

        def add_noise(strip: np.ndarray) -> np.ndarray:
            draws = generator.integers(0, 2**16, strip.shape, dtype=np.uint16)
            return cv2.add(strip, np.take(levels, draws), dtype=cv2.CV_8U)

        return map_strips(image, add_noise)


@functools.cache
def _normal_quantiles() -> np.ndarray:
    """Return the (65536,) float64 quantiles of the standard normal distribution, ascending."""
    return ndtri((np.arange(2**16) + 0.5) / 2**16)


class CLAHE(PhotometricAugmentation):
    """Equalise the lightness with a clip limit drawn from ``clip_limit``.

    Args:
        clip_limit: lowest and highest limit, 1 or more, see ``CLAHETransform``.
        tiles: number of tiles along each side of the image.
        prob: probability of a change.
    """

    def __init__(self, clip_limit: Range = (1.0, 4.0), tiles: int = 8, prob: float = 1.0) -> None:
        super().__init__(prob)
        self.clip_limit = check_range("clip_limit", clip_limit, 1)
        self.tiles = tiles

    def draw(self) -> Transform:
        """Draw the clip limit."""
        return CLAHETransform(self.draw_uniform(self.clip_limit), self.tiles)


class GaussianBlur(PhotometricAugmentation):
    """Blur with a kernel size drawn from ``kernel`` and a sigma drawn from ``sigma``.

    Args:
        kernel: smallest and largest size in pixels, both odd; each odd size between them is as
            likely. (albumentations 1.x makes even draws odd, so that 3 of "3 to 7" has 1/5.)
        sigma: lowest and highest, in pixels; (0, 0) for OpenCV's rule from the kernel.
        prob: probability of a change.
    """

    def __init__(
        self, kernel: tuple[int, int] = (3, 7), sigma: Range = (0.0, 0.0), prob: float = 1.0
    ) -> None:
        super().__init__(prob)
        self.kernel = _check_kernel(kernel)
        self.sigma = check_range("sigma", sigma, 0)

    def draw(self) -> Transform:
        """Draw the kernel, then sigma."""
        return GaussianBlurTransform(_draw_odd(self.kernel), self.draw_uniform(self.sigma))


class MedianBlur(PhotometricAugmentation):
    """Take medians in squares of a size drawn from ``kernel``.

    Args:
        kernel: smallest and largest size in pixels, 3 or 5.
        prob: probability of a change.
    """

    def __init__(self, kernel: tuple[int, int] = (3, 5), prob: float = 1.0) -> None:
        super().__init__(prob)
        self.kernel = _check_kernel(kernel, 5)

    def draw(self) -> Transform:
        """Draw the kernel."""
        return MedianBlurTransform(_draw_odd(self.kernel))


class GaussianNoise(PhotometricAugmentation):
    """Add normal noise whose variance is drawn from ``variance``.

    Args:
        variance: lowest and highest, in 8-bit levels squared, 0 to 255^2; a standard deviation s
            given as a share of full scale is a variance of (255 s)^2.
        prob: probability of a change.
    """

    def __init__(self, variance: Range = (10.0, 50.0), prob: float = 1.0) -> None:
        super().__init__(prob)
        self.variance = check_range("variance", variance, 0, 255**2)

    def draw(self) -> Transform:
        """Draw the variance, then the seed of the noise."""
        sigma = self.draw_uniform(self.variance) ** 0.5
        return GaussianNoiseTransform(sigma, int(np.random.randint(2**31 - 1)))


def _check_kernel(kernel: tuple[int, int], largest: float = np.inf) -> tuple[int, int]:
    low, high = check_range("kernel", kernel, 3, largest)
    if low % 2 != 1 or high % 2 != 1:
        raise ValueError(f"kernel is {kernel}; both sizes are odd whole numbers")
    return int(low), int(high)


def _draw_odd(limits: tuple[int, int]) -> int:
    return int(np.random.choice(np.arange(limits[0], limits[1] + 1, 2)))
