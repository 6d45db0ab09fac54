"""One TIFF in, one array out; every refusal is a `CellDataError` naming the file and the reason.

What is read: strips and tiles, contiguous or planar, of either byte order, classic and BigTIFF,
uncompressed or compressed by LZW, deflate, JPEG or PackBits. Decoding is tifffile's; LZW and JPEG
need imagecodecs. What is checked before and while decoding is in `tiff_structure`, `tiff_blocks`.
"""

from __future__ import annotations

import logging
import math
import os

import cv2
import numpy as np

from ..errors import CellDataError
from .intensity import stated_range, to_uint8
from .notices import log_once
from .tiff_blocks import JPEG, decode_blocks
from .tiff_structure import (
    FirstPage,
    check_geometry,
    check_ome_xml,
    open_first_page,
    tag_name,
)

logger = logging.getLogger(__name__)

MAX_ID = 2**31 - 1
DEFAULT_MAX_PIXELS = 100_000_000

# PhotometricInterpretation (TIFF 6.0, section 8).
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated
_COLOR_MAP = 320
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
    if channel_order not in ("RGB", "BGR"):
        raise ValueError(f"channel_order must be 'RGB' or 'BGR', not {channel_order!r}")
    if intensity_range is not None and not (
        math.isfinite(intensity_range[1] - intensity_range[0])
        and intensity_range[0] < intensity_range[1]
    ):
        raise ValueError(f"intensity_range must be (low, high) with low < high: {intensity_range}")
    with open_first_page(path) as first:
        check_geometry(first, max_pixels)
        channels = _color_channels(first)
        significant_bits = check_ome_xml(first)
        if first.num_pages > 1:
            log_once(
                logger,
                logging.WARNING,
                first.path,
                "reading the first of %d pages",
                first.num_pages,
            )
        samples = _read_samples(first, channels)
        if first.page.photometric == _PALETTE:
            samples = _apply_palette(first, samples)
        elif samples.dtype != np.uint8 or first.page.bitspersample != 8:
            stated = stated_range(first.page, significant_bits)
            given = intensity_range if samples.dtype.itemsize > 1 else None
            samples = to_uint8(samples, first.path, stated, given)
        if first.page.photometric == _WHITE_IS_ZERO:
            samples = 255 - samples
        if samples.shape[2] == 1:
            return np.repeat(samples, 3, axis=2)
        return cv2.cvtColor(samples, cv2.COLOR_BGR2RGB) if channel_order == "BGR" else samples


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


def _color_channels(first: FirstPage) -> int:
    """How many of the page's samples make the colour: 1 or 3. Others are refused."""
    page, samples = first.page, first.num_samples
    advice = "export the image as 8-bit RGB"
    if (
        page.dtype is None
        or page.dtype.kind not in "buif"
        or not isinstance(page.bitspersample, int)
    ):
        raise CellDataError(
            first.path,
            f"samples of {page.bitspersample} bits and format {tag_name(page.sampleformat)}",
            "integers or floats of one depth",
            advice,
        )
    photometric = page.photometric
    color = (
        photometric == _RGB
        or (photometric == _YCBCR and page.compression == JPEG)
        or (photometric == _BLACK_IS_ZERO and samples in (3, 4))
    )
    if color and samples in (3, 4):
        if photometric == _BLACK_IS_ZERO:
            log_once(
                logger, logging.WARNING, first.path, "%d grey samples are read as RGB", samples
            )
        # The colour conversion of JPEG is switched off by a fourth sample.
        if not (photometric == _YCBCR and samples == 4):
            return 3
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE) and samples in (1, 2):
        if samples == 2 and not set(page.extrasamples) & set(_ALPHA):
            log_once(logger, logging.WARNING, first.path, "the second sample is ignored as alpha")
        return 1
    raise CellDataError(
        first.path,
        f"{samples} samples a pixel in colour space {tag_name(photometric)}",
        "grey, palette or RGB, with or without alpha",
        advice,
    )


def _read_samples(first: FirstPage, channels: int) -> np.ndarray:
    """The first `channels` samples of each pixel, (H, W, channels), in the file's data type."""
    assert first.page.dtype is not None  # refused before
    blocks = decode_blocks(first, planes=channels)
    image = np.empty((*first.size, channels), first.page.dtype)
    for plane, row, column, block in blocks:
        target = image[row : row + block.shape[0], column : column + block.shape[1]]
        if first.page.planarconfig == 2 and first.num_samples > 1:
            target[:, :, plane] = block[:, :, 0]
        else:
            target[:] = _drop_alpha(block) if block.shape[2] > channels else block
    return image


def _drop_alpha(block: np.ndarray) -> np.ndarray:
    """(h, w, 4) to (h, w, 3), or (h, w, 2) to (h, w, 1)."""
    if block.shape[2] == 4 and block.dtype in (np.uint8, np.uint16, np.float32):
        # OpenCV's types; NumPy's copy of three values out of four takes 10 times as long.
        return cv2.cvtColor(np.ascontiguousarray(block), cv2.COLOR_RGBA2RGB)
    return block[:, :, : block.shape[2] - 1]


def _apply_palette(first: FirstPage, indices: np.ndarray) -> np.ndarray:
    """Colours, (H, W, 3) uint8, of palette indices, (H, W, 1)."""
    colors = first.page.tags.valueof(_COLOR_MAP)
    num_colors = 2**first.page.bitspersample
    if indices.dtype.kind not in "bu" or np.shape(colors) != (3, num_colors):
        raise CellDataError(
            first.path,
            f"a palette image with a colour map of shape {np.shape(colors)}",
            f"a colour map of shape {(3, num_colors)}",
            "export the image as 8-bit RGB",
        )
    # Colour maps have 16 bits by definition; some writers fill in 8, and libtiff tells them so.
    colors = np.asarray(colors)
    colors = (colors if colors.max() < 256 else colors >> 8).astype(np.uint8)
    return np.ascontiguousarray(colors.T)[indices[:, :, 0].astype(np.intp)]


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
