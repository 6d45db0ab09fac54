"""Images read window by window, so that a slide needs no more memory than what is looked at."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np

from ..errors import CellDataError
from .tiff import DEFAULT_MAX_PIXELS
from .tiff_blocks import (
    NO_COMPRESSION,
    block_size,
    check_blocks,
    decode_block,
    decode_blocks,
    has_plain_rows,
    has_planes,
)
from .tiff_color import ColorPage, check_arguments
from .tiff_errors import translate_errors, truncated
from .tiff_structure import FirstPage, check_geometry, keep_first_page_open


class ImageWindows(ABC):
    """An image of which any window can be read; a context manager that closes it.

    Attributes:
        name: of the image, for messages.
        height: in pixels.
        width: in pixels.
    """

    name: str
    height: int
    width: int

    @abstractmethod
    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window that lies inside the image.

        Returns:
            (height, width, 3) uint8, RGB.

        Raises:
            ValueError: for a window that is empty or reaches out of the image.
        """

    def close(self) -> None:  # noqa: B027 - an array has nothing to close
        """Release what is held for reading."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, top: int, left: int, height: int, width: int) -> None:
        """Refuse a window that is empty or reaches out of the image."""
        rows = 0 <= top < top + height <= self.height
        if not (rows and 0 <= left < left + width <= self.width):
            raise ValueError(
                f"a window of {height}×{width} at row {top}, column {left} in an image of "
                f"{self.height}×{self.width}"
            )


def check_image_array(image: np.ndarray) -> None:
    """Refuse what is no image as all here take them.

    Args:
        image: (H, W, 3) uint8, RGB, of at least one pixel.

    Raises:
        ValueError: for an array of another shape or type, or without a pixel.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"expected an image (H, W, 3) uint8 of at least one pixel, got {image.shape} "
            f"{image.dtype}"
        )


class ArrayWindows(ImageWindows):
    """Windows of an image that is in memory.

    Args:
        image: (H, W, 3) uint8, RGB.
        name: of the image, for messages.

    Raises:
        ValueError: see ``check_image_array``.
    """

    def __init__(self, image: np.ndarray, name: str = "an image") -> None:
        check_image_array(image)
        self.name = name
        self.height, self.width = image.shape[:2]
        self._image = image

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return a view; see `ImageWindows.read`."""
        self._check(top, left, height, width)
        return self._image[top : top + height, left : left + width]


def open_windows(
    path: str | os.PathLike[str],
    channel_order: str = "RGB",
    intensity_range: tuple[float, float] | None = None,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> TiffWindows:
    """Open an image to read windows of it, of the same pixels as `read_image` has.

    All that `read_image` reads can be read, and is refused where it refuses. The size of the image
    is not limited, but that of one strip or tile is: a compressed one can only be decoded whole.
    Where intensities are scaled by their measured range, or are floats, all strips or tiles are
    decoded once when the file is opened, to find that range.

    The strips or tiles that a window meets are kept until the next one is read. So windows in a
    row, from left to right, decode each strip or tile once, in the memory of such a row at most.

    Args:
        path: the file; to be closed, or used as a context manager.
        channel_order: as in `read_image`.
        intensity_range: as in `read_image`.
        max_pixels: the largest strip or tile that is decoded, height × width.

    Raises:
        CellDataError: the file cannot be read as an image, or not by windows.
        ValueError: an unknown channel order or an empty intensity range.
    """
    check_arguments(channel_order, intensity_range)
    return TiffWindows(os.fspath(path), channel_order, intensity_range, max_pixels)


class TiffWindows(ImageWindows):
    """Windows of an open TIFF; made by `open_windows`."""

    def __init__(
        self,
        path: str,
        channel_order: str,
        intensity_range: tuple[float, float] | None,
        max_pixels: int,
    ) -> None:
        self.name = path
        self._blocks: dict[int, tuple[int, int, int, np.ndarray]] = {}
        with ExitStack() as stack, translate_errors(path):
            self._first = stack.enter_context(keep_first_page_open(path))
            check_geometry(self._first, None)
            self._color = ColorPage(self._first, channel_order, intensity_range)
            check_blocks(self._first, self._color.channels)
            self._has_plain_rows = has_plain_rows(self._first)
            if not self._has_plain_rows:
                _check_block_size(self._first, max_pixels)
            self.height, self.width = self._first.size
            self._color.settle_range(self._extent)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close the file and forget what was decoded."""
        self._blocks.clear()
        self._stack.close()

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window; see `ImageWindows.read`.

        Raises:
            CellDataError: for data that cannot be decoded.
        """
        self._check(top, left, height, width)
        samples = np.empty((height, width, self._color.channels), self._color.dtype)
        with translate_errors(self.name):
            if self._has_plain_rows:
                self._read_rows(samples, top, left)
            else:
                self._read_blocks(samples, top, left)
            return self._color.to_rgb(samples)

    def _read_rows(self, samples: np.ndarray, top: int, left: int) -> None:
        """Fill a window from a file that stores rows as they are, and read nothing else."""
        page, file = self._first.page, self._first.page.parent.filehandle
        height, width = samples.shape[:2]
        planes = self._color.channels if has_planes(self._first) else 1
        stored = 1 if has_planes(self._first) else self._first.num_samples
        dtype = self._color.dtype.newbyteorder(page.parent.byteorder)
        pixel = stored * dtype.itemsize
        for plane in range(planes):
            for y in range(height):
                row = plane * self.height + top + y
                file.seek(page.dataoffsets[0] + (row * self.width + left) * pixel)
                data = file.read(width * pixel)
                if len(data) < width * pixel:  # the file shrank since it was opened
                    raise truncated(self.name, f"no data from row {top + y} on")
                values = np.frombuffer(data, dtype).reshape(1, width, stored)
                self._color.place(samples[y : y + 1], plane, values.astype(self._color.dtype))

    def _read_blocks(self, samples: np.ndarray, top: int, left: int) -> None:
        """Fill a window from the strips or tiles that it meets."""
        height, width = samples.shape[:2]
        numbers = list(self._numbers(top, left, height, width))
        for number in self._blocks.keys() - set(numbers):
            del self._blocks[number]
        for number in numbers:
            if number not in self._blocks:
                self._blocks[number] = decode_block(self._first, number)
            plane, row, column, block = self._blocks[number]
            y0, y1 = max(top, row), min(top + height, row + block.shape[0])
            x0, x1 = max(left, column), min(left + width, column + block.shape[1])
            target = samples[y0 - top : y1 - top, x0 - left : x1 - left]
            self._color.place(target, plane, block[y0 - row : y1 - row, x0 - column : x1 - column])

    def _numbers(self, top: int, left: int, height: int, width: int) -> Iterator[int]:
        """Numbers of the strips or tiles that a window meets: row by row, plane by plane."""
        length, breadth = block_size(self._first)
        per_row, per_column = -(-self.width // breadth), -(-self.height // length)
        for plane in range(self._color.channels if has_planes(self._first) else 1):
            for row in range(top // length, (top + height - 1) // length + 1):
                first = (plane * per_column + row) * per_row
                yield from range(first + left // breadth, first + (left + width - 1) // breadth + 1)

    def _extent(self) -> tuple[float, float]:
        """The least and the greatest sample of the image, strip by strip or tile by tile."""
        extents = []
        for _, _, _, block in decode_blocks(self._first, self._color.channels):
            colors = block[:, :, : self._color.channels]
            extents.append((float(colors.min()), float(colors.max())))
        lows, highs = np.array(extents).T
        return float(lows.min()), float(highs.max())  # NaN, where there is one


def _check_block_size(first: FirstPage, max_pixels: int) -> None:
    """Refuse strips and tiles that are too large to decode."""
    length, breadth = block_size(first)
    if not first.page.is_tiled:  # a strip ends with the image, a tile is decoded whole
        length = min(length, first.size[0])
    if length * breadth <= max_pixels:
        return
    plain = "" if first.page.compression == NO_COMPRESSION else "compressed "
    raise CellDataError(
        first.path,
        f"{plain}strips or tiles of {length}×{breadth} pixels",
        f"at most {max_pixels} pixels in each, to read a part of the image",
        "raise INPUT.CELL.MAX_PIXELS if there is memory for it, or write the image tiled: "
        "vips tiffsave IN.tif OUT.tif --tile --compression deflate --bigtiff",
    )
