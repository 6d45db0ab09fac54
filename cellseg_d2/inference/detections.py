"""What a finder answers for tiles, gathered in the coordinates of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from ..structures import RLEMasks
from ..structures.run_decoding import decode_runs
from ..structures.run_sets import concatenate_runs, move_runs, select_runs, tight_boxes, unite_runs
from ..structures.runs import PixelRuns
from .tile_grid import Tile, TileGrid

WHOLE_DEPTH = 4.0
"""Pixels of tissue between a cell and the inner border of its tile, from which it counts as whole.

A mask is drawn in a box that the network estimates, and may end a pixel short of where it is cut.
"""


@dataclass(frozen=True)
class Detections:
    """N cells, each as one tile saw it, none without a pixel.

    Attributes:
        runs: the masks, in the image.
        boxes: (N, 4) int64 XYXY, tight around the masks.
        pred_boxes: (N, 4) float32 XYXY, the finder's own.
        scores: (N,) float32.
        classes: (N,) int64.
        tiles: (N,) int64, the number of the tile.
        depths: (N,) float64, pixels to the tile's nearest inner border.
        responsible: (N,) bool, whether the tile answers for the place.
    """

    runs: PixelRuns
    boxes: np.ndarray
    pred_boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    tiles: np.ndarray
    depths: np.ndarray
    responsible: np.ndarray

    @classmethod
    def from_instances(cls, instances: Instances, tile: Tile, grid: TileGrid) -> Detections:
        """Bring the answer for a tile into the image; masks without a pixel are left out.

        Args:
            instances: of the tile's size, with ``pred_boxes``, ``scores``, ``pred_classes`` and
                ``pred_masks`` (`RLEMasks`).
            tile: which one was looked at.
            grid: the tile's.

        Raises:
            ValueError: for an answer of another size.
        """
        size = (tile.height, tile.width)
        if instances.image_size != size:
            raise ValueError(f"an answer of size {instances.image_size} for a tile of size {size}")
        runs = decode_runs(instances.pred_masks.rles, size)
        seen = np.diff(runs.offsets) > 0
        runs = move_runs(select_runs(runs, seen), tile.top, tile.left, grid.image_size)
        pred_boxes = instances.pred_boxes.tensor.cpu().numpy()[seen].astype(np.float32)
        pred_boxes += np.array([tile.left, tile.top] * 2, np.float32)
        boxes = tight_boxes(runs)
        depths = np.minimum(grid.depths(tile, boxes), grid.depths(tile, pred_boxes))
        return cls(
            runs,
            boxes,
            pred_boxes,
            instances.scores.cpu().numpy()[seen].astype(np.float32),
            instances.pred_classes.cpu().numpy()[seen].astype(np.int64),
            np.full(len(boxes), tile.number),
            depths,
            grid.answers_for(tile, boxes),
        )

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def whole(self) -> np.ndarray:
        """(N,) bool, whether no part of the cell can lie beyond an inner border of its tile."""
        return self.depths >= WHOLE_DEPTH

    def __getitem__(self, indices: np.ndarray) -> Detections:
        """Select by (K,) int64 or (N,) bool."""
        arrays = [getattr(self, field.name)[indices] for field in fields(self)[1:]]
        return Detections(select_runs(self.runs, indices), *arrays)

    @staticmethod
    def cat(parts: Sequence[Detections]) -> Detections:
        """Concatenate at least one set of detections of one image."""
        arrays = [
            np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Detections)[1:]
        ]
        return Detections(concatenate_runs([part.runs for part in parts]), *arrays)

    def to_instances(self, groups: Sequence[Sequence[int]]) -> Instances:
        """Make one cell of each group of detections.

        Args:
            groups: indices, at least one a group. The masks and boxes of a group are united; the
                first index gives score and class.

        Returns:
            The cells on the CPU, best score first, in the image.
        """
        first = np.array([group[0] for group in groups], np.int64)
        order = np.argsort(-self.scores[first], kind="stable")
        first = first[order]
        sizes = np.array([len(groups[i]) for i in order], np.int64)
        members = np.array([i for g in order for i in groups[g]], np.int64)
        cell = np.repeat(np.arange(len(first)), sizes)
        masks = unite_runs(select_runs(self.runs, members), cell, len(first))
        boxes = self.pred_boxes[first].copy()
        np.minimum.at(boxes[:, :2], cell, self.pred_boxes[members, :2])
        np.maximum.at(boxes[:, 2:], cell, self.pred_boxes[members, 2:])
        size = self.runs.image_size
        return Instances(
            size,
            pred_boxes=Boxes(torch.from_numpy(boxes)),
            scores=torch.from_numpy(self.scores[first]),
            pred_classes=torch.from_numpy(self.classes[first]),
            pred_masks=RLEMasks(masks.rles(), size),
        )
