"""A table of measurements with one row for each cell."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, BinaryIO

import numpy as np
from detectron2.structures import Instances
from numpy.typing import NDArray
from skimage.color import rgb2hed
from skimage.measure import regionprops

from ..checkpoint.files import replace_file
from ..data.tiff_window import ImageWindows
from .cells import Cell, iter_cells

# Cells that begin in one square of this side are read from the image together.
_BLOCK = 512

Row = dict[str, Any]


def columns(pixel_size: float | None) -> list[str]:
    """Return the table's header.

    Args:
        pixel_size: micrometres; None where it is not known, which leaves lengths in pixels.

    Returns:
        The names; lengths and areas end in their unit, ``_um``, ``_um2``, ``_px`` or ``_px2``.
    """
    unit = "px" if pixel_size is None else "um"
    return [
        *("image", "id", "class", "score", "centroid_x_px", "centroid_y_px"),
        *([] if pixel_size is None else ["centroid_x_um", "centroid_y_um"]),
        *(f"area_{unit}2", f"perimeter_{unit}", f"major_axis_{unit}", f"minor_axis_{unit}"),
        *("eccentricity", "solidity", "hematoxylin_mean", "eosin_mean"),
    ]


def measure_cell(cell: Cell, window: NDArray[np.uint8], pixel_size: float | None = None) -> Row:
    """Measure one cell by scikit-image's ``regionprops``, within its tight box.

    Args:
        cell: with at least one pixel.
        window: (h, w, 3) uint8 RGB, the image where the cell's mask lies.
        pixel_size: micrometres; None measures in pixels.

    Returns:
        The numbers under ``columns``' names. The centroid lies at (0.5, 0.5) for the pixel (0, 0),
        as in the GeoJSON. Axes are those of the ellipse of the same second moments, in full length;
        the perimeter is scikit-image's estimate through the centres of the border's pixels;
        solidity is the area over that of the convex hull. Stains are means over the cell of the
        haematoxylin and eosin channels of ``skimage.color.rgb2hed`` (Ruifrok and Johnston 2001,
        Analytical and Quantitative Cytology and Histology 23), in its unit.
    """
    (region,) = regionprops(cell.mask)
    stains = rgb2hed(window[cell.mask > 0]).mean(axis=0)
    y, x = np.add(region.centroid, cell.corner[::-1]) + 0.5
    side, unit = (1.0, "px") if pixel_size is None else (pixel_size, "um")
    centroid = {"centroid_x_px": x, "centroid_y_px": y}
    if pixel_size is not None:
        centroid |= {"centroid_x_um": x * side, "centroid_y_um": y * side}
    return {
        **centroid,
        f"area_{unit}2": region.area * side**2,
        f"perimeter_{unit}": region.perimeter * side,
        f"major_axis_{unit}": region.axis_major_length * side,
        f"minor_axis_{unit}": region.axis_minor_length * side,
        "eccentricity": region.eccentricity,
        "solidity": region.solidity,
        "hematoxylin_mean": stains[0],
        "eosin_mean": stains[1],
    }


class MeasurementWriter:
    """Write rows part by part.

    Args:
        file: open for writing; ``open_measurements`` opens one that appears whole or not at all.
        image_name: for the first column.
        class_names: one for each category.
        windows: the image.
        pixel_size: micrometres; None measures in pixels.
    """

    def __init__(
        self,
        file: BinaryIO,
        image_name: str,
        class_names: Sequence[str],
        windows: ImageWindows,
        pixel_size: float | None,
    ) -> None:
        self._text = io.TextIOWrapper(
            file,
            encoding="utf-8",
            # A file's name that is no UTF-8 goes into the table byte for byte.
            errors="surrogateescape",
            newline="",
            write_through=True,
        )
        self._table = csv.DictWriter(self._text, columns(pixel_size), lineterminator="\n")
        self._table.writeheader()
        self._image_name, self._class_names = image_name, class_names
        self._windows, self._pixel_size = windows, pixel_size

    def add(self, cells: Instances, first_id: int) -> None:
        """Measure some cells and write their rows, in the cells' order.

        Cells near each other are read from the image together: a slide's blocks are decoded once
        and not once a cell.

        Args:
            cells: with ``scores``, ``pred_classes`` and ``pred_masks`` (``RLEMasks``), none of them
                empty.
            first_id: id of the first one; the others follow.
        """
        blocks: dict[tuple[int, int], list[Cell]] = defaultdict(list)
        for cell in iter_cells(cells, first_id):
            blocks[cell.corner[1] // _BLOCK, cell.corner[0] // _BLOCK].append(cell)
        rows: dict[int, Row] = {}
        for block in sorted(blocks):
            rows.update(self._measure_block(blocks[block]))
        self._table.writerows(rows[cell_id] for cell_id in sorted(rows))

    def finish(self) -> None:
        """Let go of the file, which stays open; nothing can be added any more."""
        self._text.detach()

    def _measure_block(self, cells: list[Cell]) -> Iterator[tuple[int, Row]]:
        left, top = np.min([cell.corner for cell in cells], axis=0).tolist()
        ends = [np.add(cell.corner, cell.mask.shape[::-1]) for cell in cells]
        right, bottom = np.max(ends, axis=0).tolist()
        image = self._windows.read(top, left, bottom - top, right - left)
        for cell in cells:
            (height, width), x, y = cell.mask.shape, cell.corner[0] - left, cell.corner[1] - top
            window = image[y : y + height, x : x + width]
            row = measure_cell(cell, window, self._pixel_size)
            yield cell.id, {
                "image": self._image_name,
                "id": cell.id,
                "class": self._class_names[cell.category],
                "score": _text(cell.score),
                **{name: _text(value) for name, value in row.items()},
            }


@contextmanager
def open_measurements(
    path: str | PathLike[str],
    image_name: str,
    class_names: Sequence[str],
    windows: ImageWindows,
    pixel_size: float | None,
) -> Iterator[MeasurementWriter]:
    """Open a CSV that takes its name once all of it is written; see ``MeasurementWriter``.

    Args:
        path: the file; its folder is made where it is missing.
        image_name: for the first column.
        class_names: one for each category.
        windows: the image.
        pixel_size: micrometres; None measures in pixels.
    """
    with replace_file(path) as file:
        writer = MeasurementWriter(file, image_name, class_names, windows, pixel_size)
        yield writer
        writer.finish()


def _text(value: float) -> str:
    """Eight digits; nothing for what is not a number."""
    return "" if math.isnan(value) else f"{value:.8g}"
