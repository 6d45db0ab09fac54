"""What photometric augmentations share: their transforms change colours and move nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform

Range = tuple[float, float]
"""Lowest and highest value of a uniform draw."""

_STRIP_PIXELS = 100_000


class PhotometricTransform(Transform):
    """A change of an image's colours that leaves every pixel in its place."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the changed image, a new array.

        Args:
            img: (H, W, 3) uint8 RGB; not changed.

        Raises:
            ValueError: for another shape or type.
        """
        if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3:
            raise ValueError(
                f"{type(self).__name__} takes a uint8 image of shape (H, W, 3), "
                f"not {img.dtype} of {img.shape}"
            )
        return self.change(np.ascontiguousarray(img))

    @abstractmethod
    def change(self, image: np.ndarray) -> np.ndarray:
        """Return the changed image; ``image`` is contiguous and must not be written to."""

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the label map as it is."""
        return segmentation

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the points as they are."""
        return coords

    def inverse(self) -> Transform:
        """Return what takes points back: nothing. The colours are not restored."""
        return NoOpTransform()


class PhotometricAugmentation(T.Augmentation):
    """Draws a transform with probability ``prob``, and none otherwise."""

    def __init__(self, prob: float) -> None:
        super().__init__()
        self.prob = check_share("prob", prob)

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw whether to change the image, then how."""
        return self.draw() if self._rand_range() < self.prob else NoOpTransform()

    @abstractmethod
    def draw(self) -> Transform:
        """Draw the parameters from NumPy's global generator and return the transform."""

    def draw_uniform(self, limits: Range) -> float:
        """Return a number drawn uniformly from ``limits``."""
        return float(self._rand_range(*limits))


def check_share(name: str, value: float) -> float:
    """Return ``value``.

    Raises:
        ValueError: where it is not in 0 to 1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it lies in 0 to 1")
    return value


def check_range(name: str, values: Sequence[float], low: float, high: float = np.inf) -> Range:
    """Return ``values`` as (lowest, highest).

    Raises:
        ValueError: where they are not two ascending numbers in ``low`` to ``high``.
    """
    if len(values) != 2 or not low <= values[0] <= values[1] <= high:
        raise ValueError(f"{name} is {values}; it is two ascending numbers in {low} to {high}")
    return float(values[0]), float(values[1])


def map_strips(image: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply a pixelwise function to strips of rows from the top, which stay in the cache.

    A conversion of a megapixel through float32 takes a quarter of the time so (hue: 12 to 3 ms).

    Args:
        image: (H, W, 3) uint8.
        function: from (h, W, 3) uint8 to the same.
    """
    changed = np.empty_like(image)
    rows = max(1, _STRIP_PIXELS // max(1, image.shape[1]))
    for top in range(0, len(image), rows):
        changed[top : top + rows] = function(image[top : top + rows])
    return changed
