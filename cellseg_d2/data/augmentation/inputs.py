"""What an augmentation is applied to: an image and the label maps that go with it."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

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
        categories: of each label map, ascending; needed where instances are added.
        kept_ids: by category, the ids that are instances; those of added instances join them.
    """

    def __init__(
        self,
        image: np.ndarray,
        label_maps: list[np.ndarray],
        categories: Sequence[int] = (),
        kept_ids: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        super().__init__(image)
        self.image: np.ndarray
        for label_map in label_maps:
            if label_map.shape != image.shape[:2]:
                raise ValueError(
                    f"label map of shape {label_map.shape} with an image of shape {image.shape}"
                )
        self.label_maps = label_maps
        self.categories = list(categories)
        self.kept_ids = dict(kept_ids or {})

    def transform(self, tfm: Transform) -> None:
        """Apply ``tfm`` to the image and to each label map, in place."""
        self.image = tfm.apply_image(self.image)
        self.label_maps = [tfm.apply_segmentation(label_map) for label_map in self.label_maps]

    def add_instance(self, category: int, window: tuple[slice, slice], mask: np.ndarray) -> int:
        """Enter an instance in its class' label map, in place; a class without one gets a new one.

        Args:
            category: the class, from 0.
            window: rows and columns inside the image.
            mask: (h, w) bool, of the window's size; what it covers in this label map is lost.

        Returns:
            Its id, not in use in the label map before.
        """
        layer = bisect.bisect_left(self.categories, category)
        if layer == len(self.categories) or self.categories[layer] != category:
            self.categories.insert(layer, category)
            self.label_maps.insert(layer, np.zeros(self.image.shape[:2], np.int32))
        label_map = self.label_maps[layer]
        new_id = _free_id(label_map)
        label_map[window][mask] = new_id
        kept = self.kept_ids.get(category, np.zeros(0, np.int32))
        self.kept_ids[category] = np.append(kept, np.int32(new_id))
        return new_id


def _free_id(label_map: np.ndarray) -> int:
    """An id that ``label_map`` does not hold: the next, or the first gap where there is none."""
    highest = int(label_map.max(initial=0))
    if highest < np.iinfo(np.int32).max:
        return highest + 1
    used = np.unique(label_map[label_map > 0])
    # Of ascending ids from 1, the first that is not its own place's number leaves a gap before it.
    return 1 + int(np.argmax(used != np.arange(1, len(used) + 1)))
