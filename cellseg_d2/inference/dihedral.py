"""The eight symmetries of the square on images, and their exact inverses on a model's answer.

Masks stay run lengths: flips are arithmetic on runs, and only a transposition goes through pixels,
those of the cells alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from ..structures import RLEMasks
from ..structures.run_decoding import decode_runs
from ..structures.run_sets import split_columns
from ..structures.runs import PixelRuns

# Pixels of cells that a transposition lists at a time: some tens of megabytes.
_PIXELS_PER_CHUNK = 2**20


@dataclass(frozen=True)
class Symmetry:
    """A transposition or none, then flips.

    Attributes:
        transpose: whether rows become columns, about the main diagonal.
        flip_y: whether the rows are then taken from the bottom.
        flip_x: whether the columns are then taken from the right.
    """

    transpose: bool = False
    flip_y: bool = False
    flip_x: bool = False

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return the image transformed.

        Args:
            image: (H, W) or (H, W, C).

        Returns:
            A view of shape (H, W, ...), or (W, H, ...) with a transposition.
        """
        image = image.swapaxes(0, 1) if self.transpose else image
        return image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]

    def undo(self, instances: Instances) -> Instances:
        """Bring the answer to a transformed image back to the image itself.

        Args:
            instances: of the transformed image, with ``pred_boxes`` and ``pred_masks``
                (``RLEMasks``) on the CPU, or one of them; other fields are taken as they are.

        Returns:
            The instances in their order; each mask and its area the same to the pixel.
        """
        if self == Symmetry():
            return instances
        height, width = instances.image_size
        size = (width, height) if self.transpose else (height, width)
        undone = Instances(size, **instances.get_fields())
        if instances.has("pred_boxes"):
            undone.pred_boxes = Boxes(self._undo_boxes(instances.pred_boxes.tensor, height, width))
        if instances.has("pred_masks"):
            runs = self.undo_runs(decode_runs(instances.pred_masks.rles, (height, width)))
            undone.pred_masks = RLEMasks(runs.rles(), size)
        return undone

    def undo_runs(self, runs: PixelRuns) -> PixelRuns:
        """Bring masks of a transformed image back to the image itself."""
        if self.flip_y or self.flip_x:
            runs = _flip(runs, self.flip_y, self.flip_x)
        return _transpose(runs) if self.transpose else runs

    def _undo_boxes(self, boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
        x0, y0, x1, y1 = boxes.unbind(dim=1)
        if self.flip_y:
            y0, y1 = height - y1, height - y0
        if self.flip_x:
            x0, x1 = width - x1, width - x0
        return torch.stack([y0, x0, y1, x1] if self.transpose else [x0, y0, x1, y1], dim=1)


SYMMETRIES = {
    "none": Symmetry(),
    "rot90": Symmetry(transpose=True, flip_y=True),
    "rot180": Symmetry(flip_y=True, flip_x=True),
    "rot270": Symmetry(transpose=True, flip_x=True),
    "hflip": Symmetry(flip_x=True),
    "vflip": Symmetry(flip_y=True),
    "transpose": Symmetry(transpose=True),
    "antitranspose": Symmetry(transpose=True, flip_y=True, flip_x=True),
}
"""By name; rotations are counterclockwise, as ``np.rot90``'s."""


def _flip(runs: PixelRuns, flip_y: bool, flip_x: bool) -> PixelRuns:
    """Flip masks in their image."""
    height, width = runs.image_size
    run, column, top, bottom = split_columns(runs)
    instance = np.repeat(np.arange(len(runs)), np.diff(runs.offsets))[run]
    if flip_y:
        top, bottom = height - bottom, height - top
    origin = (width - 1 - column if flip_x else column) * height
    return _sorted_runs(origin + top, origin + bottom, instance, len(runs), runs.image_size)


def _sorted_runs(
    starts: np.ndarray,
    ends: np.ndarray,
    instances: np.ndarray,
    num_instances: int,
    image_size: tuple[int, int],
) -> PixelRuns:
    order = np.lexsort((starts, instances))
    return PixelRuns.from_spans(
        starts[order], ends[order], instances[order], num_instances, image_size
    )


def _transpose(runs: PixelRuns) -> PixelRuns:
    """Exchange rows and columns of masks and image."""
    height, width = runs.image_size
    # Without cells there is no chunk to concatenate.
    starts, ends, instances = ([np.zeros(0, np.int64)] for _ in range(3))
    for chunk in _chunks_of_runs(runs):
        lengths = runs.ends[chunk] - runs.starts[chunk]
        position = np.repeat(runs.starts[chunk], lengths) + _counting(lengths)
        owner = np.searchsorted(runs.offsets, np.arange(chunk.start, chunk.stop), "right") - 1
        owner = np.repeat(owner, lengths)
        column, row = np.divmod(position, height)
        # Within a row the columns already ascend.
        order = np.argsort(owner * height + row, kind="stable")
        owner, position = owner[order], row[order] * width + column[order]
        begins = np.flatnonzero((np.diff(position) != 1) | (np.diff(owner) != 0)) + 1
        begins = np.append(0, begins)
        starts.append(position[begins])
        ends.append(position[np.append(begins[1:], len(position)) - 1] + 1)
        instances.append(owner[begins])
    return _sorted_runs(
        np.concatenate(starts),
        np.concatenate(ends),
        np.concatenate(instances),
        len(runs),
        (width, height),
    )


def _chunks_of_runs(runs: PixelRuns) -> Iterator[slice]:
    """Group neighbouring runs so that a group has few pixels, or is one run."""
    pixels = np.append(0, np.cumsum(runs.ends - runs.starts))
    begin = 0
    while begin < len(runs.starts):
        fits = int(np.searchsorted(pixels, pixels[begin] + _PIXELS_PER_CHUNK, "right")) - 1
        end = max(fits, begin + 1)
        yield slice(begin, end)
        begin = end


def _counting(lengths: np.ndarray) -> np.ndarray:
    """Count from 0 within each of some stretches: [2, 3] gives [0, 1, 0, 1, 2]."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
