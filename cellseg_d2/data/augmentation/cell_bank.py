"""Cells of chosen classes, cut out of the training images to be pasted into others."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...structures import encode_label_map
from ..instances import label_components
from ..tiff import DEFAULT_MAX_PIXELS, read_image, read_label_map

logger = logging.getLogger(__name__)

CELLS_PER_CLASS = 200
"""Cells kept of a class; a bank of two classes of 45 px holds 3 MB, read in seconds."""

MARGIN = 1
"""Pixels around a cell that are cut out with it, for its blended edge."""


@dataclass(frozen=True)
class BankCell:
    """One cell with ``MARGIN`` pixels of its surroundings.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        mask: (h, w) bool; false along the border.
    """

    image: np.ndarray
    mask: np.ndarray


class CellBank:
    """Cells by category; every category has at least one.

    Args:
        cells: by category, from 0.
    """

    def __init__(self, cells: Mapping[int, Sequence[BankCell]]) -> None:
        self.cells = {category: list(found) for category, found in cells.items() if found}

    def __repr__(self) -> str:
        # Augmentations are logged with their arguments; the pixels do not belong there.
        counts = ", ".join(f"{c}: {len(found)}" for c, found in sorted(self.cells.items()))
        return f"CellBank({counts})"


def build_cell_bank(
    dicts: Sequence[dict[str, Any]],
    categories: Iterable[int],
    *,
    seed: int = 0,
    cells_per_class: int = CELLS_PER_CLASS,
    channel_order: str = "RGB",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    intensity_range: tuple[float, float] | None = None,
) -> CellBank:
    """Cut out cells; an image is read only where one of its cells was drawn, and once.

    Of each class ``cells_per_class`` cells are drawn. Those of them within ``MARGIN`` of the
    image's border, which may have been cut by it, are left out.

    Args:
        dicts: the training images, as ``load_cell_dicts`` makes them.
        categories: classes to cut out.
        seed: of the draw.
        cells_per_class: bounds time and memory.
        channel_order: "RGB" or "BGR", what the files hold.
        max_pixels: larger files are refused.
        intensity_range: see ``read_image``.

    Raises:
        CellDataError: where a file cannot be used.
    """
    categories = sorted(set(categories))
    drawn = _draw(dicts, categories, cells_per_class, seed)
    cells: dict[int, list[BankCell]] = {category: [] for category in categories}
    for index, by_category in sorted(drawn.items()):
        record = dicts[index]
        image = read_image(
            record["file_name"],
            channel_order,
            max_pixels=max_pixels,
            intensity_range=intensity_range,
        )
        for category, ids in sorted(by_category.items()):
            label_map = read_label_map(
                record["label_file_names"][category],
                max_pixels=max_pixels,
                expected_size=image.shape[:2],
            )
            if record["instances"] == "components":
                label_map = label_components(label_map)
            cells[category] += cut_out(image, label_map, ids)
    bank = CellBank(cells)
    logger.info("Cells to paste, by category: %r", bank)
    if missing := [category for category in categories if category not in bank.cells]:
        logger.warning("No cells to paste of categories %s", missing)
    return bank


def _draw(
    dicts: Sequence[dict[str, Any]], categories: Sequence[int], count: int, seed: int
) -> dict[int, dict[int, np.ndarray]]:
    """The ids drawn, by index of the dict and category."""
    drawn: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
    for category in categories:
        ids = [record["kept_ids"].get(category, np.zeros(0, np.int32)) for record in dicts]
        owners = np.repeat(np.arange(len(dicts)), [len(i) for i in ids])
        # A generator for each class: adding a class does not change the cells of another.
        order = np.random.default_rng([seed, category]).permutation(len(owners))[:count]
        chosen = np.concatenate(ids)[order] if len(order) else order
        for index in np.unique(owners[order]):
            drawn[int(index)][category] = chosen[owners[order] == index]
    return drawn


def cut_out(image: np.ndarray, label_map: np.ndarray, ids: np.ndarray) -> list[BankCell]:
    """Return the cells of ``ids``, ascending, without those within ``MARGIN`` of the border.

    Args:
        image: (H, W, 3) uint8.
        label_map: (H, W) int32.
        ids: (N,)
    """
    height, width = label_map.shape
    found = encode_label_map(label_map)
    cells = []
    for index in np.flatnonzero(np.isin(found.ids, ids)):
        x0, y0, x1, y1 = (found.boxes[index] + [-MARGIN, -MARGIN, MARGIN, MARGIN]).tolist()
        if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
            # Copies: a view would keep the whole image in memory.
            mask = label_map[y0:y1, x0:x1] == found.ids[index]
            cells.append(BankCell(image[y0:y1, x0:x1].copy(), mask))
    return cells
