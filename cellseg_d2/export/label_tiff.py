"""Cells as label TIFFs in the layout of the training data: predictions load as ground truth.

A folder holds ``image.tif`` and, for each class that has a cell, ``classK.tif`` with the ids of its
cells; ids run on across the classes. Where cells overlap the higher score has the pixel, as
wherever this project flattens (``structures.flatten``); a cell that is covered wholly is missing.

The files are deflated losslessly; of uint16 where the ids fit and of int32 otherwise, which are the
integer types that ImageJ and QuPath both open; in strips, or in tiles where a side is over 2048
pixels; and BigTIFF where classic TIFF could be too small. Where the image states the size of its
pixels, so do they.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from detectron2.structures import Instances
from numpy.typing import NDArray

from ..checkpoint.files import replace_file
from ..data.layout import IMAGE_FILE
from ..structures.flatten import LabelMapPainter

logger = logging.getLogger(__name__)

# Larger label maps are painted on a file beside their TIFFs, which the system pages in and out.
_PIXELS_IN_MEMORY = 2**24
# ImageJ opens strips only; viewers of large images want tiles.
_LARGEST_IN_STRIPS = 2048
_STRIP_ROWS = 256
_TILE = 256
# Classic TIFF ends at 4 GiB; what deflate and the header add to incompressible data is far less.
_CLASSIC_BYTES = 2**32 - 2**25


class LabelWriter:
    """Paint the cells of one image as they come, then write its folder.

    Args:
        folder: the files go to, which exists.
        image_size: height and width in pixels.
        pixel_size: micrometres; None for not known.
    """

    def __init__(
        self, folder: Path, image_size: tuple[int, int], pixel_size: float | None = None
    ) -> None:
        self._folder, self._size, self._pixel_size = folder, image_size, pixel_size
        self._scratch = folder / "painting.raw"
        out: NDArray[np.int32] | None = None
        if image_size[0] * image_size[1] > _PIXELS_IN_MEMORY:
            _reserve(self._scratch, 4 * image_size[0] * image_size[1])
            out = np.memmap(self._scratch, np.int32, mode="r+", shape=image_size)
        self._painter = LabelMapPainter(*image_size, out)
        self._ids: list[NDArray[np.int64]] = []
        self._classes: list[NDArray[np.int64]] = []

    def add(self, cells: Instances, first_id: int) -> None:
        """Paint some cells.

        Args:
            cells: with ``scores``, ``pred_classes`` and ``pred_masks`` (``RLEMasks``).
            first_id: id of the first one; the others follow. All ids of an image differ.
        """
        self._painter.add(cells.pred_masks.rles, cells.scores.numpy())
        self._ids.append(np.arange(first_id, first_id + len(cells)))
        self._classes.append(cells.pred_classes.numpy())

    def finish(self) -> int:
        """Write ``classK.tif`` for each class that kept a pixel; nothing can be added any more.

        Returns:
            The number of cells that others cover wholly.
        """
        flat = self._painter.finish()
        nothing = np.zeros(0, np.int64)
        ids = np.concatenate([nothing, *self._ids])[flat.kept]
        classes = np.concatenate([nothing, *self._classes])[flat.kept]
        dtype: Any = np.uint16 if ids.max(initial=0) < 2**16 else np.int32
        for category in np.unique(classes).tolist():
            # The map counts the cells that it kept from 1 on; the files have the ids given.
            table = np.zeros(len(ids) + 1, dtype)
            table[1:] = np.where(classes == category, ids, 0)
            with replace_file(self._folder / f"class{category + 1}.tif") as file:
                self._write(file, flat.label_map, table)
        dropped = flat.dropped
        del flat, self._painter
        self._scratch.unlink(missing_ok=True)
        return dropped

    def _write(self, file: Any, label_map: NDArray[np.int32], table: NDArray[Any]) -> None:
        height, width = self._size
        tiled = max(height, width) > _LARGEST_IN_STRIPS
        pixels = _tiles(label_map, table) if tiled else table[label_map]
        options: dict[str, Any] = (
            {"tile": (_TILE, _TILE)} if tiled else {"rowsperstrip": _STRIP_ROWS}
        )
        if self._pixel_size is not None:
            per_centimetre = 1e4 / self._pixel_size
            options |= {"resolution": (per_centimetre,) * 2, "resolutionunit": "CENTIMETER"}
        bigtiff = height * width * table.itemsize > _CLASSIC_BYTES
        with tifffile.TiffWriter(file, bigtiff=bigtiff) as tiff:
            tiff.write(
                pixels,
                shape=self._size,
                dtype=table.dtype,
                photometric="minisblack",
                compression="zlib",
                metadata=None,
                **options,
            )


@contextmanager
def open_label_folder(
    folder: str | PathLike[str],
    image_file: str | PathLike[str],
    image_size: tuple[int, int],
    pixel_size: float | None = None,
) -> Iterator[LabelWriter]:
    """Open a folder of label TIFFs that takes its name once all of it is written.

    ``image.tif`` is a hard link to the image where the file system allows one, and a copy where it
    does not. What a former run left under the folder's name is replaced as a whole.

    Args:
        folder: for example ``labels/<image>``; the one above it is made where it is missing.
        image_file: the image.
        image_size: height and width in pixels.
        pixel_size: micrometres; None for not known.
    """
    folder = Path(folder)
    part = folder.with_name(f".{folder.name}.part")
    _remove(part)
    part.mkdir(parents=True)
    try:
        writer = LabelWriter(part, image_size, pixel_size)
        yield writer
        dropped = writer.finish()
        if dropped:
            logger.info("%s: left out, covered by cells of higher scores: %d", folder, dropped)
        _link(Path(image_file), part / IMAGE_FILE)
        _remove(folder)
        os.replace(part, folder)
    except BaseException:
        _remove(part)
        raise


def _tiles(label_map: NDArray[np.int32], table: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for top in range(0, label_map.shape[0], _TILE):
        for left in range(0, label_map.shape[1], _TILE):
            yield table[label_map[top : top + _TILE, left : left + _TILE]]


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros that has its room on the disk.

    A page of a map that finds no room kills the process (SIGBUS); here a full disk is an error.
    """
    with open(path, "wb") as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not on this file system
                    raise


def _link(source: Path, target: Path) -> None:
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
