"""Copy-paste of cells of rare classes, on the image and its label maps.

Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation",
CVPR 2021, without its resizing: a cell's size is a feature of its class.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform

from ...errors import ConfigError
from .cell_bank import BankCell, CellBank, build_cell_bank
from .inputs import CellAugInput
from .paste_room import GRID, PasteRoom

CELLS_TRIED, PLACES_TRIED = 3, 8
"""Cells drawn for one to be pasted, and places for each, before it is given up."""

_EDGE_OUTSIDE, _EDGE_INSIDE = 85, 170


@dataclass(frozen=True)
class PastedCell:
    """A cell at its place.

    Attributes:
        category: its class, from 0.
        window: the rows and columns that ``cell`` takes, inside the image.
        cell: turned and flipped as it is pasted.
    """

    category: int
    window: tuple[slice, slice]
    cell: BankCell


class PasteTransform(Transform):
    """Paints cells onto an image, and takes away in label maps what lies under them.

    That the painted cells are instances themselves is ``CopyPaste``'s to enter: a transform does
    not know which class a label map belongs to.

    Args:
        cells: whose masks do not overlap.
    """

    def __init__(self, cells: Sequence[PastedCell]) -> None:
        super().__init__()
        self.cells = cells

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Blend the cells into a (H, W, 3) uint8 image, with ``edge_alpha``."""
        painted = img.copy()
        for pasted in self.cells:
            alpha = edge_alpha(pasted.cell.mask).astype(np.uint16)[:, :, None]
            below = painted[pasted.window]
            painted[pasted.window] = (
                pasted.cell.image * alpha + below * (255 - alpha) + 127
            ) // 255
        return painted

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Set the pixels of the cells to 0 in a (H, W) label map."""
        cleared = segmentation.copy()
        for pasted in self.cells:
            cleared[pasted.window][pasted.cell.mask] = 0
        return cleared

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the points as they are."""
        return coords


def edge_alpha(mask: np.ndarray) -> np.ndarray:
    """Return how much of a pasted cell shows, (h, w) uint8, 255 for all.

    Two thirds along the inner side of the mask's border and one third along its outer side (by
    4-neighbours), so that the edge rises over two pixels; the mask itself is not changed.

    Args:
        mask: (h, w) bool.
    """
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inside = mask.astype(np.uint8)
    alpha = cv2.dilate(inside, cross) * _EDGE_OUTSIDE
    alpha[mask] = _EDGE_INSIDE
    # Beyond the window is not the cell.
    alpha[cv2.erode(inside, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0] = 255
    return alpha


class CopyPaste(T.Augmentation):
    """Pastes 1 to ``max_cells`` cells of a bank, each of a class drawn evenly.

    A cell is turned and flipped at random and placed at its own size, where its mask meets no other
    pasted cell and leaves of every other instance, of whatever class, at least a share of
    1 - ``max_cover``, all pasted cells counted together. Its place is drawn evenly among those
    where that can hold (``PasteRoom``), so that the gaps between dense cells are found; where none
    of those drawn holds, there is one cell less.

    What lies under a pasted cell goes from all label maps; in its own class' the cell gets an id
    that is not in use there. Works on ``CellAugInput``.

    Args:
        bank: the cells.
        max_cells: at most so many in an image, at least 1.
        max_cover: largest share, in [0, 1], of another instance's pixels that may be covered.
        prob: probability with which anything is pasted.
    """

    def __init__(
        self, bank: CellBank, max_cells: int = 3, max_cover: float = 0.2, prob: float = 0.5
    ) -> None:
        super().__init__()
        self.bank = bank
        self.max_cells = max_cells
        self.max_cover = max_cover
        self.prob = prob

    def __call__(self, aug_input: CellAugInput) -> Transform:
        """Paste into ``aug_input``, and enter the pasted cells as instances."""
        paste = super().__call__(aug_input)
        if isinstance(paste, PasteTransform):
            for pasted in paste.cells:
                aug_input.add_instance(pasted.category, pasted.window, pasted.cell.mask)
        return paste

    def get_transform(self, image: np.ndarray, label_maps: list[np.ndarray]) -> Transform:
        """Draw the cells and their places."""
        if not self.bank.cells or self._rand_range() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        room = PasteRoom(label_maps, (height, width), self.max_cover)
        count = 1 + self._rand_int(self.max_cells)
        pasted = [cell for cell in (self._draw(room) for _ in range(count)) if cell]
        return PasteTransform(pasted) if pasted else NoOpTransform()

    def _draw(self, room: PasteRoom) -> PastedCell | None:
        """A cell at a place that it has taken, or None where none was found."""
        categories = sorted(self.bank.cells)
        # Once, so that a class of large cells, for which there is less room, comes as often.
        category = categories[self._rand_int(len(categories))]
        cells = self.bank.cells[category]
        for _ in range(CELLS_TRIED):
            cell = _turned(cells[self._rand_int(len(cells))], self._rand_int(8))
            places = room.places(cell.mask)
            for _ in range(PLACES_TRIED if len(places) else 0):
                place = int(places[self._rand_int(len(places))])
                offset = self._rand_int(GRID), self._rand_int(GRID)
                window = room.window_at(place, cell.mask.shape, offset)
                if room.take(cell.mask, window):
                    return PastedCell(category, window, cell)
        return None

    def _rand_int(self, count: int) -> int:
        """A number from 0 to ``count`` - 1."""
        return int(self._rand_range(count))


def _turned(cell: BankCell, symmetry: int) -> BankCell:
    """One of the square's eight symmetries, 0 to 7."""
    image, mask = np.rot90(cell.image, symmetry % 4), np.rot90(cell.mask, symmetry % 4)
    if symmetry >= 4:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return BankCell(image, np.ascontiguousarray(mask))


def build_copy_paste(cfg: CfgNode) -> list[CopyPaste]:
    """Return the augmentation that ``INPUT.CELL.COPY_PASTE`` asks for; none without classes.

    The bank is cut from ``DATASETS.TRAIN`` here, once, before a loader starts its workers: they
    share it.

    Raises:
        ConfigError: for a class that is not known, or a number out of range.
        CellDataError: where a file cannot be used.
    """
    node = cfg.INPUT.CELL.COPY_PASTE
    if not node.CLASSES:
        return []
    for key, value, low, high in (
        ("MAX_CELLS", node.MAX_CELLS, 1, 1000),
        ("MAX_COVER", node.MAX_COVER, 0, 1),
        ("PROB", node.PROB, 0, 1),
    ):
        if not low <= value <= high:
            raise ConfigError(f"INPUT.CELL.COPY_PASTE.{key} is {value}; it lies in [{low}, {high}]")
    bank = build_cell_bank(
        list(itertools.chain.from_iterable(map(DatasetCatalog.get, cfg.DATASETS.TRAIN))),
        class_indices(node.CLASSES, cfg.DATASETS.CELL.CLASS_NAMES),
        seed=max(cfg.SEED, 0),
        channel_order=cfg.INPUT.CELL.CHANNEL_ORDER,
        max_pixels=cfg.INPUT.CELL.MAX_PIXELS,
        intensity_range=tuple(cfg.INPUT.CELL.INTENSITY_RANGE) or None,
    )
    return [CopyPaste(bank, node.MAX_CELLS, node.MAX_COVER, node.PROB)]


def class_indices(classes: Sequence[int | str], names: Sequence[str]) -> list[int]:
    """Return the categories, from 0, of classes given by category or by name.

    Raises:
        ConfigError: for one that is not there.
    """
    known = {name: category for category, name in enumerate(names)}
    indices = [known.get(c, -1) if isinstance(c, str) else c for c in classes]
    for given, index in zip(classes, indices, strict=True):
        if not 0 <= index < len(names):
            raise ConfigError(
                f"INPUT.CELL.COPY_PASTE.CLASSES names {given!r}; classes are 0 to "
                f"{len(names) - 1}, or {', '.join(names)}"
            )
    return indices
