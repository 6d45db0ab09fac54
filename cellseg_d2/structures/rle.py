"""From RoI masks to RLEs without a bitmap of the image; masks that stay RLEs until asked for."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Boxes

from .chunks import chunks_of_similar_size
from .run_decoding import decode_runs
from .run_sets import areas
from .runs import PixelRuns

# Pixels pasted at a time: some megabytes of coordinates, small enough to stay near the processor.
_PIXELS_PER_CHUNK = 2**18


def encode_roi_masks(
    masks: torch.Tensor,
    boxes: torch.Tensor | Boxes,
    image_size: tuple[int, int],
    threshold: float = 0.5,
) -> list[dict]:
    """Paste RoI masks into the image and encode them, all at once and each in its own window.

    The bytes are those of ``paste_masks_in_image`` on the CPU and ``pycocotools.mask.encode``: each
    mask is sampled by the same kernel at the same coordinates, but down the columns of its window,
    where the runs of an RLE go. A large box is pasted whole, but no more than 2**18 pixels of small
    ones at a time. 90 times as fast for 400 cells in 1000x1000 pixels (``tools/benchmark.py``).

    A box outside the image gives an empty mask; Detectron2's function raises an error for some of
    these. On CUDA too, a mask reaches no further out of its box than on the CPU (a pixel or two,
    which matters for thresholds below one half).

    Args:
        masks: (N, 1, M, M) or (N, M, M), probabilities in [0, 1], on any device.
        boxes: (N, 4) XYXY in pixels, on the device of the masks.
        image_size: height and width in pixels.
        threshold: a pixel belongs to the mask where the probability is at least this; in [0, 1].

    Returns:
        N dicts ``{"size": [H, W], "counts": bytes}``, COCO's compressed RLE.

    Raises:
        ValueError: for shapes that do not fit, a threshold outside [0, 1], or a box that is not
            finite.
    """
    if isinstance(boxes, Boxes):
        boxes = boxes.tensor
    if masks.dim() == 3:
        masks = masks[:, None]
    if masks.dim() != 4 or masks.shape[1] != 1 or masks.shape[2] != masks.shape[3]:
        raise ValueError(f"masks have the shape (N, 1, M, M) or (N, M, M), not {masks.shape}")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"{len(masks)} masks need boxes (N, 4), not {tuple(boxes.shape)}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold lies in [0, 1], not at {threshold}")
    if not torch.isfinite(boxes).all():
        raise ValueError("boxes have to be finite; drop the others first")
    height, width = int(image_size[0]), int(image_size[1])
    if not masks.is_floating_point():
        masks = masks.float()

    windows = _paste_windows(boxes, height, width)
    sizes = windows[:, 2:] - windows[:, :2]
    pieces = [
        _runs_in_windows(masks[chunk], boxes[chunk], windows[chunk], height, threshold, chunk)
        for chunk in chunks_of_similar_size(sizes, _PIXELS_PER_CHUNK)
    ]
    return _gather_runs(pieces, len(masks), (height, width)).rles()


def _paste_windows(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The part of the image that Detectron2 pastes each mask into: its box and a pixel around.

    Returns:
        (N, 4) int64, XYXY, x1 and y1 exclusive; without area where nothing is pasted.
    """
    limit = torch.tensor([width, height], device=boxes.device)
    low = (boxes[:, :2].floor() - 1).clamp(min=0).minimum(limit)
    high = (boxes[:, 2:].ceil() + 1).minimum(limit).maximum(low)
    return torch.cat([low, high], dim=1).long()


def _runs_in_windows(
    masks: torch.Tensor,
    boxes: torch.Tensor,
    windows: torch.Tensor,
    height: int,
    threshold: float,
    instances: torch.Tensor,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paste some masks and find their runs.

    Returns:
        First positions and ends of the runs in the image's column-major order, and the instance of
        each; sorted by these, then by position.
    """
    extent_x, extent_y = (windows[:, 2:] - windows[:, :2]).amax(dim=0).tolist()
    grid_x, inside_x = _grid(boxes[:, 0], boxes[:, 2], windows[:, 0], windows[:, 2], extent_x)
    grid_y, inside_y = _grid(boxes[:, 1], boxes[:, 3], windows[:, 1], windows[:, 3], extent_y)
    grid = torch.stack(
        [
            grid_x[:, :, None].expand(-1, -1, extent_y),
            grid_y[:, None, :].expand(-1, extent_x, -1),
        ],
        dim=3,
    )
    pasted = F.grid_sample(masks, grid.to(masks.dtype), align_corners=False)[:, 0]
    # (n, x, y) with a column's end closed by background, so that runs end where a column does.
    filled = torch.zeros(len(masks), extent_x, extent_y + 1, dtype=torch.bool, device=masks.device)
    filled[:, :, :-1] = (pasted >= threshold) & inside_x[:, :, None] & inside_y[:, None, :]
    flat = filled.flatten()
    edges = torch.nonzero(flat[1:] != flat[:-1])[:, 0] + 1
    if len(flat) and flat[0]:
        edges = torch.cat([edges.new_zeros(1), edges])

    column, y = np.divmod(edges.cpu().numpy(), extent_y + 1)
    index, x = np.divmod(column, extent_x)
    origin = windows.cpu().numpy()[index]
    position = (x + origin[:, 0]) * height + y + origin[:, 1]
    return position[0::2], position[1::2], instances.cpu().numpy()[index[0::2]]


def _grid(
    box_low: torch.Tensor,
    box_high: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    extent: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the pixels of each window lie on the mask's axis, and which of them are the window's.

    The arithmetic is that of ``detectron2.layers.mask_ops._do_paste_mask``, step by step.

    Returns:
        (n, extent) coordinates, -1 and 1 at the box's sides, and (n, extent) bool.
    """
    pixel = low[:, None] + torch.arange(extent, device=low.device)
    center = pixel.to(torch.float32) + 0.5
    coordinates = (center - box_low[:, None]) / (box_high - box_low)[:, None] * 2 - 1
    return coordinates, pixel < high[:, None]


def _gather_runs(
    pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    num_instances: int,
    image_size: tuple[int, int],
) -> PixelRuns:
    """Put the runs of all chunks in the order of the instances, and join those that touch."""
    nothing = (np.zeros(0, dtype=np.int64),) * 3
    starts, ends, instances = map(np.concatenate, zip(nothing, *pieces, strict=True))
    order = np.argsort(instances, kind="stable")
    starts, ends, instances = starts[order], ends[order], instances[order]
    return PixelRuns.from_spans(starts, ends, instances, num_instances, image_size)


class RLEMasks:
    """Instance masks as COCO RLEs, decoded one at a time and only when asked for.

    They stand in for the (N, H, W) tensor of ``Instances.pred_masks``: they are indexed,
    concatenated, moved and pickled with their ``Instances``; and iterating over them yields
    bitmaps, which is how ``instances_to_coco_json`` reads them. What needs RLEs takes ``rles``.

    Attributes:
        rles: N dicts ``{"size": [H, W], "counts": bytes}``.
        image_size: height and width in pixels.
    """

    def __init__(self, rles: Sequence[dict], image_size: tuple[int, int]) -> None:
        """Wrap RLEs.

        Args:
            rles: compressed RLEs, all of the image's size.
            image_size: height and width in pixels.

        Raises:
            ValueError: if an RLE is of another size.
        """
        height, width = int(image_size[0]), int(image_size[1])
        for rle in rles:
            if list(rle["size"]) != [height, width]:
                raise ValueError(f"an RLE of size {rle['size']} in an image of {height}x{width}")
        self.rles = list(rles)
        self.image_size = (height, width)

    def to(self, *args: Any, **kwargs: Any) -> "RLEMasks":
        """Return itself: RLEs have no device."""
        return self

    @property
    def device(self) -> torch.device:
        """The CPU, where masks are decoded."""
        return torch.device("cpu")

    def __len__(self) -> int:
        return len(self.rles)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield one (H, W) bool mask at a time, on the CPU."""
        for rle in self.rles:
            yield torch.from_numpy(mask_util.decode(rle)).bool()

    def __getitem__(self, item: int | slice | torch.Tensor | np.ndarray | list) -> "RLEMasks":
        """Select instances as a tensor of length N would; an int keeps a set of one instance."""
        indices = torch.arange(len(self))[item.cpu() if isinstance(item, torch.Tensor) else item]
        return RLEMasks([self.rles[i] for i in indices.reshape(-1).tolist()], self.image_size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All masks as (N, H, W), as Detectron2's ``Visualizer`` asks for them; large and slow."""
        masks = self.to_bit_masks().tensor.numpy()
        return masks if dtype is None else masks.astype(dtype)

    def area(self) -> torch.Tensor:
        """Areas in pixels, (N,) int64."""
        # pycocotools 2.0.11 raises an error for more than 255 masks under NumPy 2.
        return torch.from_numpy(areas(decode_runs(self.rles, self.image_size)))

    def nonempty(self) -> torch.Tensor:
        """Which masks have any pixel, (N,) bool."""
        return self.area() > 0

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes, XYXY with x1 and y1 exclusive; zeros for an empty mask."""
        boxes = torch.from_numpy(mask_util.toBbox(self.rles)).float().reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return Boxes(boxes)

    def to_bit_masks(self) -> BitMasks:
        """Decode all masks into (N, H, W): for other people's tools; slow and large on purpose."""
        masks = torch.zeros(len(self), *self.image_size, dtype=torch.bool)
        for target, mask in zip(masks, self, strict=True):
            target.copy_(mask)
        return BitMasks(masks)

    @staticmethod
    def cat(masks: Sequence["RLEMasks"]) -> "RLEMasks":
        """Concatenate masks of images of one size.

        Args:
            masks: at least one set of masks.

        Raises:
            ValueError: if there is none, or the image sizes differ.
        """
        if len({part.image_size for part in masks}) != 1:
            raise ValueError("only masks of images of one size can be concatenated")
        return RLEMasks([rle for part in masks for rle in part.rles], masks[0].image_size)
