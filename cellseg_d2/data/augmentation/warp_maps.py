"""Backward maps: for each pixel of an output, where in the input it comes from.

Coordinates count pixel centres: (0, 0) is the centre of the top left pixel, x to the right, y
downwards. Maps compose without touching a pixel, so that a chain of them is resampled once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from .remap import remap

Points = tuple[np.ndarray, np.ndarray]
"""x and y, float32, of shapes that broadcast to (H, W); a map of x alone stays (1, W)."""


class PixelMap(Protocol):
    """Anything that says where the pixels of an output of ``size`` (H, W) come from."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the output in pixels."""

    def __call__(self, x: np.ndarray, y: np.ndarray) -> Points:
        """Return the input coordinates of output coordinates (x, y)."""


class AffineMap(NamedTuple):
    """A linear map and a shift.

    Attributes:
        matrix: (3, 3) float64, takes output (x, y, 1) to input (x, y, 1).
        size: (H, W) of the output.
    """

    matrix: np.ndarray
    size: tuple[int, int]

    def __call__(self, x: np.ndarray, y: np.ndarray) -> Points:
        """Return the input coordinates of output coordinates (x, y)."""
        rows = self.matrix[:2].tolist()
        return _linear(rows[0], x, y), _linear(rows[1], x, y)


def _linear(row: list[float], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Terms of 0 are left out, so that a flip or a zoom of (1, W) stays (1, W).
    if row[1] == 0:
        return row[0] * x + row[2]
    if row[0] == 0:
        return row[1] * y + row[2]
    return (row[0] * x + row[2]) + row[1] * y


def rotation(degrees: float) -> np.ndarray:
    """Return the (2, 2) backward matrix of a turn counter-clockwise, with y downwards."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cosine, -sine], [sine, cosine]])


def about_center(height: int, width: int, linear: np.ndarray) -> AffineMap:
    """Return the map with the (2, 2) backward matrix ``linear`` that leaves the centre in place."""
    center = np.array([(width - 1) / 2, (height - 1) / 2])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = center - linear @ center
    return AffineMap(matrix, (height, width))


def crop_map(
    left: float, top: float, share_x: float, share_y: float, size: tuple[int, int]
) -> AffineMap:
    """Return the map that stretches a crop to the whole frame.

    Args:
        left: of the crop's left edge, in pixels from the frame's.
        top: of its top edge.
        share_x: the crop's width over the frame's.
        share_y: its height over the frame's.
        size: (H, W) of the frame.
    """
    # Edges, not pixel centres, are what is stretched: hence the halves.
    matrix = np.array(
        [
            [share_x, 0, left + (share_x - 1) / 2],
            [0, share_y, top + (share_y - 1) / 2],
            [0, 0, 1],
        ]
    )
    return AffineMap(matrix, size)


class GridMap(NamedTuple):
    """Columns and rows in equal bands, each band stretched by a factor of its own.

    Attributes:
        stretch_x, stretch_y: (steps,) float, input pixels per output pixel in each band, left to
            right and top to bottom. Beyond the frame the outermost bands go on.
        size: (H, W).
    """

    stretch_x: np.ndarray
    stretch_y: np.ndarray
    size: tuple[int, int]

    def __call__(self, x: np.ndarray, y: np.ndarray) -> Points:
        """Return the input coordinates of output coordinates (x, y)."""
        height, width = self.size
        return _stretch(x, self.stretch_x, width), _stretch(y, self.stretch_y, height)


# How many frames the outermost bands of a grid go on beyond the frame; no map reaches this far.
_FAR = 1000.0


def _stretch(position: np.ndarray, factors: np.ndarray, length: int) -> np.ndarray:
    steps = len(factors)
    knots = np.linspace(0.0, length, steps + 1)
    values = np.concatenate([[0.0], np.cumsum(factors)]) * (length / steps)
    far = _FAR * length
    knots = np.concatenate([[-far], knots, [length + far]])
    values = np.concatenate([[-far * factors[0]], values, [values[-1] + far * factors[-1]]])
    # Pixel i spans [i, i + 1], so its centre lies at i + 1/2.
    return (np.interp(position + 0.5, knots, values) - 0.5).astype(np.float32)


class LensMap(NamedTuple):
    """Radial distortion about the centre c of the frame: input = c + d * (1 + k r^2 + k r^4).

    d is the offset from c in pixels, r the length of (d_x / W, d_y / H), at most .71 in the frame.

    Attributes:
        strength: k; positive samples from farther out (pincushion), negative from farther in.
        shift: (x, y) in pixels, added to the input coordinates.
        size: (H, W).
    """

    strength: float
    shift: tuple[float, float]
    size: tuple[int, int]

    def __call__(self, x: np.ndarray, y: np.ndarray) -> Points:
        """Return the input coordinates of output coordinates (x, y)."""
        height, width = self.size
        center_x, center_y = (width - 1) / 2, (height - 1) / 2
        offset_x, offset_y = x - center_x, y - center_y
        squared = (offset_x / width) ** 2 + (offset_y / height) ** 2
        factor = squared + 1
        factor *= squared
        factor *= self.strength
        factor += 1
        return (
            offset_x * factor + (center_x + self.shift[0]),
            offset_y * factor + (center_y + self.shift[1]),
        )


class ElasticMap(NamedTuple):
    """A displacement for each pixel.

    Attributes:
        shift_x, shift_y: (H, W) float32 in pixels, mirrored beyond the frame and interpolated
            bilinearly between pixels.
    """

    shift_x: np.ndarray
    shift_y: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.shift_x.shape
        return height, width

    def __call__(self, x: np.ndarray, y: np.ndarray) -> Points:
        """Return the input coordinates of output coordinates (x, y)."""
        grid_x, grid_y = pixel_grid(self.size)
        if np.array_equal(x, grid_x) and np.array_equal(y, grid_y):
            return x + self.shift_x, y + self.shift_y
        x, y = (np.ascontiguousarray(v) for v in np.broadcast_arrays(x, y))
        return x + _sample(self.shift_x, x, y), y + _sample(self.shift_y, x, y)


def _sample(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return remap(values, x, y, cv2.INTER_LINEAR)


def smooth_in_place(fields: Iterable[np.ndarray], sigma: float) -> None:
    """Convolve each field with a Gaussian, wrapped around at the borders.

    By Fourier transform, at a cost that does not depend on ``sigma``, and in place: fresh memory
    costs as much as the arithmetic.

    Args:
        fields: (H, W) float32, contiguous, all of one size, each side at least
            ``2 * kernel_radius(sigma) + 1``.
        sigma: of the Gaussian in pixels, cut at four sigma and normalised to sum 1, as SciPy does.
    """
    spectrum: np.ndarray | None = None
    for field in fields:
        if spectrum is None:
            spectrum = np.outer(*(_wrapped_kernel(sigma, length) for length in field.shape))
            cv2.dft(spectrum, spectrum)
        cv2.dft(field, field)
        cv2.mulSpectrums(field, spectrum, 0, field)
        cv2.idft(field, field, cv2.DFT_SCALE | cv2.DFT_REAL_OUTPUT)


def kernel_radius(sigma: float) -> int:
    """Return how many pixels a Gaussian reaches from its centre when cut at four sigma."""
    return int(4 * sigma + 0.5)


def _wrapped_kernel(sigma: float, length: int) -> np.ndarray:
    radius = kernel_radius(sigma)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = np.zeros(length, np.float32)
    kernel[offsets] = weights / weights.sum()
    return kernel


def elastic_map(size: tuple[int, int], alpha: float, sigma: float, seed: int) -> ElasticMap:
    """Return displacements of uniform noise in [-1, 1], smoothed by a Gaussian, times ``alpha``.

    Simard, Steinkraus and Platt, "Best practices for convolutional neural networks applied to
    visual document analysis", ICDAR 2003. The noise goes on beyond the frame, where others mirror
    it, so that displacements are as large at the border as elsewhere: of standard deviation
    ``alpha / (2 * sqrt(3 * pi) * sigma)`` in x and in y.

    Args:
        size: (H, W) in pixels.
        alpha: in pixels, the largest displacement possible.
        sigma: in pixels.
        seed: of the noise.
    """
    height, width = size
    margin = 2 * kernel_radius(sigma) + 1
    shape = tuple(cv2.getOptimalDFTSize(length + margin) for length in size)
    # Single precision from a generator of its own takes a third of np.random.uniform's time.
    generator = np.random.Generator(np.random.SFC64(seed))

    noise = generator.random((2, *shape), dtype=np.float32)
    noise *= 2 * alpha
    noise -= alpha
    smooth_in_place(noise, sigma)
    return ElasticMap(noise[0, :height, :width], noise[1, :height, :width])


def pixel_grid(size: tuple[int, int]) -> Points:
    """Return x of shape (1, W) and y of shape (H, 1), float32: the pixel centres of a frame."""
    height, width = size
    x = np.arange(width, dtype=np.float32)[None, :]
    y = np.arange(height, dtype=np.float32)[:, None]
    return x, y


def compose(maps: Sequence[PixelMap]) -> AffineMap | Points:
    """Return the one map that stands for applying ``maps`` in order.

    Args:
        maps: at least one; the first is applied to the image first. Each gets frames of the size
            that the one before it makes.

    Returns:
        An ``AffineMap`` where all are affine, the product of their matrices; otherwise the input
        coordinates (x, y) of each output pixel, two contiguous (H, W) float32 arrays.
    """
    size = maps[-1].size
    points: Points | None = None
    matrix = np.eye(3)
    # A backward map runs from the output back to the input: the last step comes first.
    for step in reversed(maps):
        if isinstance(step, AffineMap):
            matrix = step.matrix @ matrix
            continue
        points = step(*AffineMap(matrix, size)(*(points or pixel_grid(size))))
        matrix = np.eye(3)
    if points is None:
        return AffineMap(matrix, size)
    x, y = AffineMap(matrix, size)(*points)
    return (
        np.ascontiguousarray(np.broadcast_to(x, size)),
        np.ascontiguousarray(np.broadcast_to(y, size)),
    )
