"""What an augmentation is applied to: an image and the label maps that go with it."""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform


class CellAugInput(T.AugInput):
    """An image and its label maps, transformed together.

    An augmentation asks for what it needs by the names of ``get_transform``'s arguments: ``image``
    or ``label_maps``.

    Attributes:
        image: (H, W, 3) uint8 or float32, values in 0 to 255.
        label_maps: list of (H, W) int32 arrays, 0 the background, other values instance ids.
    """

    def __init__(self, image: np.ndarray, label_maps: list[np.ndarray]) -> None:
        super().__init__(image)
        self.image: np.ndarray
        for label_map in label_maps:
            if label_map.shape != image.shape[:2]:
                raise ValueError(
                    f"label map of shape {label_map.shape} with an image of shape {image.shape}"
                )
        self.label_maps = label_maps

    def transform(self, tfm: Transform) -> None:
        """Apply ``tfm`` to the image and to each label map, in place."""
        self.image = tfm.apply_image(self.image)
        self.label_maps = [tfm.apply_segmentation(label_map) for label_map in self.label_maps]
