"""Instance masks as ids in label maps: what Detectron2 expects of ``gt_masks``."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes

from .label_map_runs import encode_label_map
from .mask_targets import crop_label_maps

_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


class LabelMasks:
    """The masks of N instances of one image, with the interface of Detectron2's ``BitMasks``.

    An instance is an id in one of L label maps (one a class, say), so that instances of different
    layers may overlap. One id may have several components; the same id in two layers is two
    instances; an id that is nowhere in its map, cut off by a crop, is an empty mask. Thousands of
    instances cost what the maps cost: no (N, H, W) array is built but by ``to_bit_masks``.

    Selections share the maps, and what has been measured on them; so the maps must not be changed
    in place.

    Attributes:
        label_maps: (L, H, W), integer, 0 is background.
        layers: (N,) int64, the map of each instance.
        ids: (N,) its id there, in the dtype of ``label_maps``.
    """

    def __init__(self, label_maps: torch.Tensor, layers: torch.Tensor, ids: torch.Tensor) -> None:
        """Describe instances.

        Args:
            label_maps: (L, H, W) uint8, int16, int32 or int64.
            layers: (N,) integers from 0 to L - 1.
            ids: (N,) integers from 1 to 2**31 - 1, in the range of the maps' dtype.

        Raises:
            TypeError: for another dtype.
            ValueError: for shapes that do not fit, or a layer or id out of range.
        """
        if label_maps.dtype not in _DTYPES:
            raise TypeError(f"label maps are of an integer dtype, not {label_maps.dtype}")
        if label_maps.dim() != 3:
            raise ValueError(f"label maps have the shape (L, H, W), not {tuple(label_maps.shape)}")
        for name, values in (("layers", layers), ("ids", ids)):
            if values.dtype not in _DTYPES:
                raise TypeError(f"{name} are of an integer dtype, not {values.dtype}")
            if values.dim() != 1 or len(values) != len(ids):
                raise ValueError(
                    f"layers and ids have one length, not {tuple(layers.shape)}, {tuple(ids.shape)}"
                )
        if len(ids):
            if layers.min() < 0 or layers.max() >= len(label_maps):
                raise ValueError(f"layers go from 0 to {len(label_maps) - 1}, not {layers}")
            largest = min(torch.iinfo(label_maps.dtype).max, 2**31 - 1)
            if ids.min() < 1 or ids.max() > largest:
                raise ValueError(f"ids go from 1 to {largest} in {label_maps.dtype} maps")
        self.label_maps = label_maps
        self.layers = layers.to(device=label_maps.device, dtype=torch.int64)
        self.ids = ids.to(device=label_maps.device, dtype=label_maps.dtype)
        # What one pass over a layer found: sorted ids, areas, boxes. One dictionary serves all
        # selections. The runs are not kept, for workers send their results through a pipe.
        self._scans: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def _replace(self, **attributes: torch.Tensor) -> "LabelMasks":
        """The same maps, or a copy of them, seen otherwise: the measurements stay."""
        masks = copy.copy(self)
        masks.__dict__.update(attributes)
        return masks

    def to(self, *args: Any, **kwargs: Any) -> "LabelMasks":
        """Move to a device; arguments as of ``torch.Tensor.to``, without a dtype."""
        label_maps = self.label_maps.to(*args, **kwargs)
        if label_maps.dtype != self.label_maps.dtype:
            raise TypeError(f"label maps keep their dtype; {label_maps.dtype} was asked for")
        device = label_maps.device
        return self._replace(
            label_maps=label_maps, layers=self.layers.to(device), ids=self.ids.to(device)
        )

    @property
    def device(self) -> torch.device:
        """Where the label maps are."""
        return self.label_maps.device

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.label_maps.shape[1], self.label_maps.shape[2]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    def __getitem__(self, item: int | slice | torch.Tensor | np.ndarray | list) -> "LabelMasks":
        """Select instances, without copying the maps.

        Args:
            item: an int, which keeps a set of one instance; a slice; a bool vector of length N; or
                indices.
        """
        layers, ids = torch.atleast_1d(self.layers[item], self.ids[item])
        if ids.dim() != 1:
            raise IndexError(f"an index of instances selects a vector, not {tuple(ids.shape)}")
        return self._replace(layers=layers, ids=ids)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield one (H, W) bool mask at a time."""
        for layer, instance_id in zip(self.layers.tolist(), self.ids.tolist(), strict=True):
            yield self.label_maps[layer] == instance_id

    def nonempty(self) -> torch.Tensor:
        """Which instances have any pixel.

        Returns:
            (N,) bool.
        """
        return self.area() > 0

    def area(self) -> torch.Tensor:
        """Count the pixels of each instance.

        Returns:
            (N,) int64.
        """
        return torch.from_numpy(self._measure()[0]).to(self.device)

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes, XYXY in pixels, x1 and y1 exclusive.

        Returns:
            N boxes, float32, on the maps' device; zeros for an empty instance.
        """
        return Boxes(torch.from_numpy(self._measure()[1]).to(self.device, torch.float32))

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Crop each instance by its box, and resize it to a square: training targets of mask heads.

        The result is that of ``BitMasks.crop_and_resize``; see :mod:`.mask_targets` for how.

        Args:
            boxes: (N, 4) XYXY in pixels, finite.
            mask_size: M, the side of the result in pixels.

        Returns:
            (N, M, M) bool, on the maps' device.

        Raises:
            ValueError: if there is not one finite box an instance.
        """
        if boxes.shape != (len(self), 4):
            raise ValueError(f"{len(self)} instances need boxes (N, 4), not {tuple(boxes.shape)}")
        if not torch.isfinite(boxes).all():
            raise ValueError("boxes have to be finite; has the training diverged?")
        return crop_label_maps(self.label_maps, self.layers, self.ids, boxes, mask_size)

    def to_bit_masks(self) -> BitMasks:
        """Draw every mask, (N, H, W): for other people's tools; slow and large on purpose."""
        masks = torch.zeros(len(self), *self.image_size, dtype=torch.bool, device=self.device)
        for target, mask in zip(masks, self, strict=True):
            target.copy_(mask)
        return BitMasks(masks)

    @staticmethod
    def cat(masks: Sequence["LabelMasks"]) -> "LabelMasks":
        """Concatenate instances of images of one size; maps that they share are kept once.

        Args:
            masks: at least one set of instances.

        Raises:
            ValueError: if there is none, or the image sizes differ.
        """
        if len({part.image_size for part in masks}) != 1:
            raise ValueError("only masks of images of one size can be concatenated")
        maps = {id(part.label_maps): part.label_maps for part in masks}
        ids = torch.cat([part.ids for part in masks])
        if len(maps) == 1:
            return masks[0]._replace(layers=torch.cat([part.layers for part in masks]), ids=ids)
        first_layer, num_layers = {}, 0
        for key, label_maps in maps.items():
            first_layer[key] = num_layers
            num_layers += len(label_maps)
        layers = torch.cat([part.layers + first_layer[id(part.label_maps)] for part in masks])
        return LabelMasks(torch.cat(list(maps.values())), layers, ids)

    def _measure(self) -> tuple[np.ndarray, np.ndarray]:
        """Areas (N,) int64 and boxes (N, 4) int32; each layer is read once, and only if used."""
        layers, ids = self.layers.cpu().numpy(), self.ids.cpu().numpy()
        areas = np.zeros(len(self), dtype=np.int64)
        boxes = np.zeros((len(self), 4), dtype=np.int32)
        for layer in np.unique(layers).tolist():
            if layer not in self._scans:
                found = encode_label_map(self.label_maps[layer].cpu().numpy())
                self._scans[layer] = found.ids, found.areas, found.boxes
            found_ids, found_areas, found_boxes = self._scans[layer]
            present = np.flatnonzero((layers == layer) & np.isin(ids, found_ids))
            place = np.searchsorted(found_ids, ids[present])
            areas[present] = found_areas[place]
            boxes[present] = found_boxes[place]
        return areas, boxes
