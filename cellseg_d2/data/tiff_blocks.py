"""Strips and tiles, decoded one at a time, none of them trusted.

tifffile fills a missing strip with zeros, and some codecs trust the size that a stream itself
states. So before anything is decoded every strip or tile must be there in full, and none may unpack
to more than the header declares.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from ..errors import CellDataError
from .tiff_errors import ADVICE_DAMAGED, HAVE_IMAGECODECS, tag_name, truncated
from .tiff_lzw import find_lzw_fault
from .tiff_structure import FirstPage

if HAVE_IMAGECODECS:
    import imagecodecs

NO_COMPRESSION, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS = 1, 5, 7, 8, 32946, 32773
COMPRESSIONS = {
    NO_COMPRESSION: "none",
    LZW: "LZW",
    JPEG: "JPEG",
    DEFLATE: "deflate",
    OLD_DEFLATE: "deflate",
    PACKBITS: "PackBits",
}
_READ_BYTES = 1 << 18


def decode_blocks(first: FirstPage, planes: int = 1) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Decode the page strip by strip or tile by tile, so that only one of them is held at a time.

    That all data are there is checked when this is called, decoding goes with the iteration: so a
    caller allocates its result in between.

    Args:
        first: the page, whose geometry has been checked.
        planes: how many planes to decode of a page that keeps its samples in separate planes;
            ignored for others.

    Returns:
        An iterator over (plane, row, column, block): the block, (h, w, samples) in the file's data
        type, belongs where (row, column) is its first pixel. Blocks are cut to the image and cover
        it.

    Raises:
        CellDataError: an unsupported compression, missing or truncated data, or data that unpacks
            to more than is declared.
    """
    num_blocks = check_blocks(first, planes)
    if has_plain_rows(first) and not has_planes(first):
        return _read_rows(first)
    return (decode_block(first, number) for number in range(num_blocks))


def has_planes(first: FirstPage) -> bool:
    """Whether the page keeps its samples in separate planes."""
    return first.page.planarconfig == 2 and first.num_samples > 1


def has_plain_rows(first: FirstPage) -> bool:
    """Whether all rows follow one another as they are, plane by plane, so that any can be read."""
    page = first.page
    return page.is_contiguous and page.predictor == 1 and page.fillorder == 1


def check_blocks(first: FirstPage, planes: int) -> int:
    """Check that all data are there.

    Args:
        first: the page, whose geometry has been checked.
        planes: as in `decode_blocks`.

    Returns:
        How many strips or tiles there are to decode.

    Raises:
        CellDataError: an unsupported compression, missing or truncated data.
    """
    page, (height, width) = first.page, first.size
    if page.compression not in COMPRESSIONS:
        raise CellDataError(
            first.path,
            f"compression {tag_name(page.compression)}",
            f"one of {', '.join(dict.fromkeys(COMPRESSIONS.values()))}",
            "export the file with one of these",
        )
    num_blocks = math.prod(page.chunked)
    if has_planes(first):
        num_blocks = num_blocks // first.num_samples * planes
    offsets, counts = page.dataoffsets, page.databytecounts
    if min(len(offsets), len(counts)) < num_blocks:
        raise truncated(
            first.path, f"{min(len(offsets), len(counts))} of {num_blocks} strips or tiles"
        )
    for number, (offset, count) in enumerate(zip(offsets[:num_blocks], counts, strict=False)):
        if offset <= 0 or count <= 0:
            raise truncated(first.path, f"no data for strip or tile {number}")
        if offset + count > first.file_size:
            missing = offset + count - first.file_size
            raise truncated(first.path, f"strip or tile {number} cut short by {missing} bytes")

    if has_plain_rows(first):
        assert page.dtype is not None  # refused before
        samples = planes if has_planes(first) else first.num_samples
        needed = height * width * samples * page.dtype.itemsize
        if needed > sum(counts):
            raise truncated(first.path, f"{sum(counts)} of {needed} bytes")
    return num_blocks


def decode_block(first: FirstPage, number: int) -> tuple[int, int, int, np.ndarray]:
    """Check and decode one strip or tile by itself.

    Args:
        first: the page, passed by `check_blocks`.
        number: of the strip or tile, below what `check_blocks` returned.

    Returns:
        (plane, row, column, block), as `decode_blocks`.

    Raises:
        CellDataError: missing or truncated data, or data that unpacks to more than is declared.
    """
    page, (height, width) = first.page, first.size
    file = page.parent.filehandle
    file.seek(page.dataoffsets[number])
    data = file.read(page.databytecounts[number])
    if len(data) < page.databytecounts[number]:  # the file shrank since it was opened
        raise truncated(first.path, f"strip or tile {number} cut short")
    if page.compression == JPEG:
        _check_jpeg(first, data, number)
    elif page.compression in (DEFLATE, OLD_DEFLATE) and not HAVE_IMAGECODECS:
        _check_deflate(first, data, number)
    elif page.compression == LZW and HAVE_IMAGECODECS:
        _check_lzw(first, data, number)
    block, (plane, _, row, column, _), _ = page.decode(data, number, jpegtables=page.jpegtables)
    assert block is not None  # only for data of None
    return plane, row, column, block[0, : height - row, : width - column]


def _read_rows(first: FirstPage) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Blocks of an uncompressed page whose strips follow one another, whatever their height.

    Masks are written with strips of two rows by some tools: read one by one, a 1000×1000 mask takes
    10 ms, so 1 ms.
    """
    page, (height, width) = first.page, first.size
    assert page.dtype is not None  # refused before
    dtype = page.dtype.newbyteorder(page.parent.byteorder)
    row_bytes = width * first.num_samples * dtype.itemsize
    page.parent.filehandle.seek(page.dataoffsets[0])
    step = max(1, _READ_BYTES // row_bytes)
    for row in range(0, height, step):
        rows = min(step, height - row)
        data = page.parent.filehandle.read(rows * row_bytes)
        if len(data) < rows * row_bytes:  # the file shrank since it was opened
            raise truncated(first.path, f"no data from row {row} on")
        block = np.frombuffer(data, dtype).reshape(rows, width, first.num_samples)
        yield 0, row, 0, block.astype(page.dtype, copy=False)


def _check_jpeg(first: FirstPage, data: bytes, number: int) -> None:
    """Refuse a JPEG stream larger than its strip or tile, or one without an end.

    libjpeg allocates by the stream's own header, whatever the TIFF declares, and fills what is
    missing with grey.
    """
    length, width = block_size(first)
    stream_size = _jpeg_size(data)
    if stream_size is None or b"\xff\xd9" not in data[-16:]:
        raise truncated(first.path, f"strip or tile {number} with an incomplete JPEG stream")
    if stream_size[0] > length or stream_size[1] > width:
        raise CellDataError(
            first.path,
            f"a JPEG stream of {stream_size[0]}×{stream_size[1]} pixels in strip or tile {number}",
            f"at most the declared {length}×{width}",
            ADVICE_DAMAGED,
        )


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in a JPEG stream's frame header (ITU T.81, B.2.2), None without one."""
    position = 2 if data[:2] == b"\xff\xd8" else len(data)
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return height, width
        else:
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None


def _check_deflate(first: FirstPage, data: bytes, number: int) -> None:
    """Refuse what unpacks to more than a strip or tile holds.

    imagecodecs stops there by itself; the standard library's zlib, which tifffile uses without it,
    fills the memory.
    """
    page = first.page
    length, width = block_size(first)
    samples = first.num_samples if page.planarconfig == 1 else 1
    assert page.dtype is not None  # refused before
    limit = length * width * samples * page.dtype.itemsize
    unpacker = zlib.decompressobj()
    if len(unpacker.decompress(data, limit + 1)) > limit:
        raise CellDataError(
            first.path,
            f"strip or tile {number} that unpacks to more than {limit} bytes",
            "no more than the header declares",
            ADVICE_DAMAGED,
        )


def _check_lzw(first: FirstPage, data: bytes, number: int) -> None:
    """Refuse what the LZW decoder of imagecodecs does not survive."""
    if first.page.fillorder == 2:
        data = bytes(imagecodecs.bitorder_decode(data))
    fault = find_lzw_fault(data)
    if fault is not None:
        raise CellDataError(
            first.path,
            f"strip or tile {number} whose LZW data cannot be decoded ({fault})",
            "an LZW stream as TIFF 6.0 defines it",
            ADVICE_DAMAGED,
        )


def block_size(first: FirstPage) -> tuple[int, int]:
    """(height, width) of a whole strip or tile, in pixels."""
    page = first.page
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return page.rowsperstrip, page.imagewidth
