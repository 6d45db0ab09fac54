"""One TIFF in, one array out; every refusal is a `CellDataError` naming the file and the reason.

What is read: strips and tiles, contiguous or planar, of either byte order, classic and BigTIFF,
uncompressed or compressed by LZW, deflate, JPEG or PackBits. Decoding is tifffile's; LZW and JPEG
need imagecodecs. What is checked before and while decoding is in `tiff_structure`, `tiff_blocks`.
"""

from __future__ import annotations

import math
import os

import numpy as np

from ..errors import CellDataError
from .tiff_blocks import JPEG, decode_blocks
from .tiff_color import ColorPage, check_arguments
from .tiff_errors import tag_name
from .tiff_structure import FirstPage, check_geometry, check_ome_xml, open_first_page

MAX_ID = 2**31 - 1
DEFAULT_MAX_PIXELS = 100_000_000

# Rows are checked in bands small enough to stay in the processor's cache between the passes.
_BAND_PIXELS = 1 << 15


def read_image(
    path: str | os.PathLike[str],
    channel_order: str = "RGB",
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    intensity_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """Read an image as 8-bit RGB.

    Colour, grey and palette images are read; grey is replicated, alpha dropped. 8-bit samples are
    taken as they are, fewer bits spread to 0..255. Deeper images are scaled to 8 bits by one range
    for all channels, which is logged at INFO: `intensity_range`; else
    what the file states (SMin/SMaxSampleValue, Min/MaxSampleValue, a packed depth as 12 bits, OME
    SignificantBits); else, for floats, 0..1 where all values lie within, else 0..255 likewise; else
    the measured minimum and maximum. Of several pages the first is read, with a warning.

    Args:
        path: the file.
        channel_order: "RGB" or "BGR", the order that the file's colours are stored in.
        max_pixels: the largest height × width that is read.
        intensity_range: (low, high), the intensities that become 0 and 255 in images of more than 8
            bits, in the file's units.

    Returns:
        (H, W, 3) uint8, RGB, contiguous, rows from the top.

    Raises:
        CellDataError: the file cannot be read as such an image.
        ValueError: an unknown channel order or an empty intensity range.
    """
    check_arguments(channel_order, intensity_range)
    with open_first_page(path) as first:
        check_geometry(first, max_pixels)
        color = ColorPage(first, channel_order, intensity_range)
        blocks = decode_blocks(first, planes=color.channels)
        samples = np.empty((*first.size, color.channels), color.dtype)
        for plane, row, column, block in blocks:
            target = samples[row : row + block.shape[0], column : column + block.shape[1]]
            color.place(target, plane, block)
        color.settle_range(lambda: (float(samples.min()), float(samples.max())))
        return color.to_rgb(samples)


def read_label_map(
    path: str | os.PathLike[str],
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    expected_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Read a mask whose values are instance ids.

    Boolean, integer and float files are read, as long as every value is a whole number from 0
    (background) to `MAX_ID`, and small enough to be exact in the file's type (2^24 in float32).
    Values are taken as stored: neither a colour map nor an inverted grey scale changes an id.

    It costs little over decoding: each strip or tile is converted and checked while it is in the
    cache, and no second image is held.

    Args:
        path: the file.
        max_pixels: the largest height × width that is read.
        expected_size: (height, width) of the image that the mask belongs to.

    Returns:
        (H, W) int32 ids, 0 for the background.

    Raises:
        CellDataError: the file cannot be read as such a mask: more than one page or channel,
            another size, JPEG compression (which changes ids), or values that are not ids.
    """
    with open_first_page(path) as first:
        check_geometry(first, max_pixels)
        _check_is_label_map(first, expected_size)
        check_ome_xml(first)
        blocks = decode_blocks(first)
        label_map = np.empty(first.size, np.int32)
        with np.errstate(invalid="ignore"):  # NaN and the like are looked for after the conversion
            for _, row, column, block in blocks:
                height, width = block.shape[:2]
                target = label_map[row : row + height, column : column + width]
                _store_ids(first.path, block[:, :, 0], target, (row, column))
        return label_map


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read the size of the first page from the header alone, whatever the number of pixels.

    Args:
        path: the file.

    Returns:
        (height, width) in pixels.

    Raises:
        CellDataError: the file is not a TIFF, or its header states no usable size.
    """
    with open_first_page(path) as first:
        check_geometry(first, None)
        return first.size


def _check_is_label_map(first: FirstPage, expected_size: tuple[int, int] | None) -> None:
    """Refuse from the header what cannot be a mask of ids, or has not the image's size."""
    page = first.page
    advice = "export one single-channel mask, ids as integers, for each class"
    if first.num_pages > 1:
        raise CellDataError(first.path, f"{first.num_pages} pages", "a mask of one page", advice)
    if first.num_samples != 1:
        raise CellDataError(
            first.path, f"{first.num_samples} channels", "a mask of one channel", advice
        )
    if page.dtype is None or page.dtype.kind not in "buif":
        raise CellDataError(
            first.path,
            f"samples of {page.bitspersample} bits and format {tag_name(page.sampleformat)}",
            "ids as integers or floats",
            advice,
        )
    if page.compression == JPEG:
        raise CellDataError(
            first.path,
            "a mask compressed as JPEG, which changes ids",
            "lossless compression",
            "export the mask again, uncompressed or with LZW or deflate",
        )
    if expected_size is not None and first.size != tuple(expected_size):
        raise CellDataError(
            first.path,
            f"a mask of {first.size[0]}×{first.size[1]} pixels",
            f"the image's {expected_size[0]}×{expected_size[1]} (height×width)",
            "export the mask at the image's size",
        )


def _store_ids(
    path: str, values: np.ndarray, target: np.ndarray, position: tuple[int, int]
) -> None:
    """Convert one decoded block to ids, or refuse it.

    Args:
        path: the file, for messages.
        values: (h, w) of the file's data type.
        target: (h, w) int32, written to.
        position: (row, column) of the block in the image, for messages.
    """
    kind, itemsize = values.dtype.kind, values.dtype.itemsize
    if kind == "b" or (kind == "u" and itemsize <= 2):
        target[:] = values
        return
    largest = MAX_ID
    if kind == "f":  # beyond this whole numbers are skipped, so that ids may have been merged
        largest = min(MAX_ID, 2 ** (np.finfo(values.dtype).nmant + 1))
    rows = max(1, _BAND_PIXELS // values.shape[1])
    for start in range(0, len(values), rows):
        band, ids = values[start : start + rows], target[start : start + rows]
        np.copyto(ids, band, casting="unsafe")
        # Seen as unsigned, negative ids are the largest of all: one comparison for both ends. A
        # value that int32 cannot hold comes out as another number, which the second one sees.
        fits = int(ids.view(np.uint32).max()) <= largest
        exact = itemsize <= 4 and kind != "f" or bool((ids == band).all())
        if not (fits and exact):
            raise _bad_ids(path, band, (position[0] + start, position[1]), largest)


def _bad_ids(
    path: str, values: np.ndarray, position: tuple[int, int], largest: int
) -> CellDataError:
    """The error for the first value that is not an id."""
    whole = values == np.floor(values)
    bad = ~whole | (values < 0) | (values > largest) | ~np.isfinite(values)
    row, column = np.argwhere(bad)[0]
    value = values[row, column].item()
    if not math.isfinite(value):
        fault = "which is no number"
    elif value < 0:
        fault = "which is negative"
    elif value > largest:
        fault = f"which is too large for {values.dtype}" if largest < MAX_ID else "too large"
    else:
        fault = "which is fractional"
    return CellDataError(
        path,
        f"{value!r} at row {position[0] + row}, column {position[1] + column}, {fault}",
        f"whole ids from 0 to {largest}",
        "export the mask with ids as integers, numbered from 1",
    )
