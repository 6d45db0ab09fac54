"""A folder of overlays and one contact sheet, for a data set or for a submission."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import numpy as np
from detectron2.data.catalog import Metadata
from numpy.typing import NDArray

from .png import save_png
from .sheets import SheetRow, contact_sheet, thumbnail

# More would make the sheet too long to take in.
_SHEET_IMAGES = 12
_SIDE = 420
_BLOCKS_ACROSS = 2


class Gallery:
    """Collects the pictures of several images, of which it holds the thumbnails only.

    Overlays go to `folder/overlays/<name>.png`, the first twelve images to `folder/sheet.png`.

    Args:
        folder: where the pictures go; made where it is missing.
        columns: names of the sheet's columns.
        metadata: names and colours of the classes.
    """

    def __init__(
        self, folder: str | PathLike[str], columns: Iterable[str], metadata: Metadata
    ) -> None:
        self._folder = Path(folder)
        self._columns = list(columns)
        self._metadata = metadata
        self._rows: list[SheetRow] = []

    @property
    def sheet_has_room(self) -> bool:
        """Whether the sheet takes another image."""
        return len(self._rows) < _SHEET_IMAGES

    def add_overlay(self, name: str, picture: NDArray[np.uint8]) -> Path:
        """Writes one image's overlay.

        Args:
            name: of the image.
            picture: (H, W, 3) uint8 RGB.
        """
        return save_png(self._folder / "overlays" / f"{name}.png", picture)

    def add_row(self, title: str, pictures: Iterable[NDArray[np.uint8]]) -> None:
        """Adds an image to the sheet.

        Args:
            title: what stands above it.
            pictures: (H, W, 3) uint8 RGB, one for each column.
        """
        self._rows.append(SheetRow(title, [thumbnail(picture, _SIDE) for picture in pictures]))

    def write_sheet(self) -> Path:
        """Writes the sheet.

        Raises:
            ValueError: no image was added.
        """
        sheet = contact_sheet(
            self._rows,
            self._columns,
            self._metadata.thing_classes,
            self._metadata.thing_colors,
            side=_SIDE,
            across=_BLOCKS_ACROSS if len(self._rows) > 2 else 1,
        )
        return save_png(self._folder / "sheet.png", sheet)
