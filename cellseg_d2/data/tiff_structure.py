"""The first page of a TIFF file, opened without trusting the file.

tifffile logs a message and goes on where a file is damaged: a tag whose value lies outside the file
is as if it had never been written, and a cyclic chain of pages is followed. So what this reader
relies on is checked here first: every directory and every tag value of the first page lies inside
the file, the chain of pages ends, the size is within the limit.

The layout of directories and tags is that of the TIFF 6.0 specification (Adobe, 1992), section 2,
and of its BigTIFF extension.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index
from typing import BinaryIO
from xml.etree import ElementTree

import tifffile

from ..errors import CellDataError
from .tiff_errors import ADVICE_DAMAGED, EXPECTED_TIFF, tag_name, translate_errors, truncated

MAX_PAGES = 65_536
_MAX_TAGS = 4096  # tifffile's own limit for one directory
_TYPE_SIZES = {
    **{1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4},
    **{16: 8, 17: 8, 18: 8},  # BigTIFF's 64-bit integers
}
_ORIENTATION = 274


@dataclass(frozen=True)
class FirstPage:
    """The first page of an open file.

    Attributes:
        path: the file.
        page: tifffile's page, valid while the file is open.
        num_pages: how many pages the file holds, or says that it holds.
        file_size: bytes in the file.
    """

    path: str
    page: tifffile.TiffPage
    num_pages: int
    file_size: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        # index() refuses the floats, tuples and strings that a tag of the wrong type yields.
        return index(self.page.imagelength), index(self.page.imagewidth)

    @property
    def num_samples(self) -> int:
        """Values per pixel, alpha included."""
        return index(self.page.samplesperpixel)


@contextmanager
def open_first_page(path: str | os.PathLike[str]) -> Iterator[FirstPage]:
    """Open a TIFF file whose structure is sound; a context manager.

    Everything that fails inside the `with` block, too, is raised as a `CellDataError`.

    Args:
        path: the file.

    Yields:
        its first page.

    Raises:
        CellDataError: the file is missing, unreadable, not a TIFF, truncated or damaged.
    """
    name = os.fspath(path)
    with translate_errors(name), keep_first_page_open(name) as first:
        yield first


@contextmanager
def keep_first_page_open(name: str) -> Iterator[FirstPage]:
    """As `open_first_page`, but errors are not translated, neither here nor in the `with` block."""
    status = os.stat(name)
    if stat.S_ISDIR(status.st_mode):
        raise CellDataError(name, "a folder", EXPECTED_TIFF, "give the path of a file")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise CellDataError(name, "a device or pipe", EXPECTED_TIFF, "give the path of a file")
    if status.st_size == 0:
        raise CellDataError(name, "an empty file (0 bytes)", EXPECTED_TIFF, ADVICE_DAMAGED)
    with open(name, "rb") as file:
        num_pages = _check_directories(name, file, status.st_size)
        file.seek(0)  # where tifffile begins to count
        # Readers of vendor formats run on tags that any file can hold, and are not needed: a first
        # page that is a valid baseline page is read without them.
        with tifffile.TiffFile(
            file, is_ndpi=False, is_lsm=False, is_scanimage=False, is_eer=False
        ) as tiff:
            page = tiff.pages.first
            num_pages = max(num_pages, _stated_pages(page))
            yield FirstPage(name, page, num_pages, status.st_size)


def check_geometry(first: FirstPage, max_pixels: int | None) -> None:
    """Refuse, from the header, what no reader here can turn into one upright image.

    Args:
        first: the page.
        max_pixels: the largest height × width allowed, for the image and for one tile; None: any.

    Raises:
        CellDataError: no pixels, too many, a volume, or a stored orientation other than upright.
    """
    page, (height, width) = first.page, first.size
    if height <= 0 or width <= 0:
        raise CellDataError(
            first.path, f"a size of {height}×{width} pixels", "at least 1×1", ADVICE_DAMAGED
        )
    if index(page.imagedepth) != 1 or (page.is_tiled and index(page.tiledepth) != 1):
        raise CellDataError(
            first.path,
            f"a volume of depth {page.imagedepth}",
            "a flat image",
            "export the plane that you need as an image of its own",
        )
    if max_pixels is not None and height * width > max_pixels:
        raise CellDataError(
            first.path,
            f"{height}×{width} pixels",
            f"at most {max_pixels} pixels in all",
            "raise INPUT.CELL.MAX_PIXELS if there is memory for it, or cut the image into tiles",
        )
    if page.is_tiled:
        tile = index(page.tilelength), index(page.tilewidth)
        if min(tile) <= 0 or (max_pixels is not None and tile[0] * tile[1] > max_pixels):
            raise CellDataError(
                first.path,
                f"tiles of {tile[0]}×{tile[1]} pixels",
                "tiles no larger than the largest image allowed",
                "export the file again with smaller tiles",
            )
    # Most tools, those that draw masks among them, ignore the tag. To honour it would turn the
    # image away from its masks without a word: the user alone knows what the masks follow.
    orientation = page.tags.valueof(_ORIENTATION, 1)
    if orientation not in (0, 1):
        raise CellDataError(
            first.path,
            f"orientation {tag_name(orientation)} in the file's header",
            "upright pixels (orientation 1)",
            "export the image and its masks turned upright, without an orientation tag",
        )


def check_ome_xml(first: FirstPage) -> int | None:
    """Parse the OME-XML of a page that has it.

    Args:
        first: the page.

    Returns:
        The significant bits per sample that it states; None where it, or the page, states none.

    Raises:
        CellDataError: the XML is broken, or declares entities.
    """
    description = first.page.description
    if not re.search(r"<(\w+:)?OME[\s>]", description[:4096]):
        return None
    advice = "export the file again, or as a TIFF without OME metadata"
    if "<!DOCTYPE" in description or "<!ENTITY" in description:
        raise CellDataError(
            first.path, "OME-XML that declares entities", "OME-XML without them", advice
        )
    try:
        root = ElementTree.fromstring(description)
    except ElementTree.ParseError as error:
        raise CellDataError(
            first.path, f"broken OME-XML ({error})", "well-formed OME-XML", advice
        ) from error
    for element in root.iter():
        if element.tag.rpartition("}")[2] == "Pixels":
            bits = element.get("SignificantBits", "")
            return int(bits) if bits.isascii() and bits.isdigit() else None
    return None


def _check_directories(path: str, file: BinaryIO, file_size: int) -> int:
    """Follow the chain of pages without tifffile and return its length.

    The values of the first page's tags must lie inside the file: of the later pages only the number
    is needed.
    """
    header = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(header[:2], "")
    version = struct.unpack(f"{order}H", header[2:4])[0] if order and len(header) >= 4 else 0
    if version == 42:
        count_format, tag_format, offset_format, offset_at = "H", "HHI4s", "I", 4
    elif version == 43:
        count_format, tag_format, offset_format, offset_at = "Q", "HHQ8s", "Q", 8
    else:
        raise CellDataError(
            path,
            f"a file that is no TIFF (it begins with {header[:4]!r})",
            EXPECTED_TIFF,
            "convert the image to TIFF; another file's name does not make it one",
        )
    count_struct = struct.Struct(order + count_format)
    tag_struct = struct.Struct(order + tag_format)
    offset_struct = struct.Struct(order + offset_format)
    if len(header) < offset_at + offset_struct.size:
        raise truncated(path, "an incomplete header")
    (offset,) = offset_struct.unpack_from(header, offset_at)
    if offset == 0:
        raise CellDataError(path, "a TIFF without pages", "one page", ADVICE_DAMAGED)

    seen: set[int] = set()
    while offset:
        if offset in seen:
            raise CellDataError(
                path,
                f"a chain of pages that runs in a circle after page {len(seen)}",
                "a chain that ends",
                ADVICE_DAMAGED,
            )
        if len(seen) == MAX_PAGES:
            raise CellDataError(
                path, f"more than {MAX_PAGES} pages", "fewer", "export the first page alone"
            )
        if offset + count_struct.size > file_size:
            raise truncated(path, f"page {len(seen) + 1} outside the file")
        file.seek(offset)
        data = file.read(count_struct.size)
        (num_tags,) = count_struct.unpack(data)
        if not 1 <= num_tags <= _MAX_TAGS:
            raise truncated(path, f"page {len(seen) + 1} with {num_tags} tags")
        tags_size = num_tags * tag_struct.size
        data = file.read(tags_size + offset_struct.size)
        if len(data) < tags_size + offset_struct.size:
            raise truncated(path, f"an incomplete directory of page {len(seen) + 1}")
        if not seen:
            for code, kind, count, value in tag_struct.iter_unpack(data[:tags_size]):
                num_bytes = count * _TYPE_SIZES.get(kind, 0)
                outside = offset_struct.unpack(value)[0] + num_bytes > file_size
                if num_bytes > offset_struct.size and outside:
                    raise truncated(path, f"tag {code} with a value outside the file")
        seen.add(offset)
        (offset,) = offset_struct.unpack_from(data, tags_size)
    return len(seen)


def _stated_pages(page: tifffile.TiffPage) -> int:
    """Pages that ImageJ's or tifffile's description promises behind a single directory."""
    images = re.match(
        r"ImageJ=.*?^images=(\d{1,9})\s*$", page.description, re.DOTALL | re.MULTILINE
    )
    if images:
        return int(images[1])
    shape = re.match(r'\{"shape": \[([\d, ]{1,200})\]', page.description)
    if shape:
        values = math.prod(int(length) for length in shape[1].split(",") if length.strip())
        # index() refuses a tuple, of which the product would be a longer one.
        return values // max(1, math.prod(map(index, page.shape)))
    return 1
