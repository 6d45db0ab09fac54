"""Files made to do harm, one by one, and the error that each is refused with."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from cellseg_d2.data import read_image, read_label_map
from cellseg_d2.data.tiff import read_size
from cellseg_d2.data.tiff_window import open_windows
from cellseg_d2.errors import CellDataError

from .tiff_files import number_fields, tiff_seeds, written

IDS = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)


def windows(path: Path, **options: int) -> np.ndarray:
    with open_windows(path, **options) as opened:
        return opened.read(0, 0, min(opened.height, 8), min(opened.width, 8))


READERS = [read_image, read_label_map, windows]


def tags(data: bytes) -> dict[int, int]:
    """{tag: position of its entry} of the first page of a classic little-endian file."""
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    entries = range(directory + 2, directory + 2 + 12 * count, 12)
    return {struct.unpack_from("<H", data, at)[0]: at for at in entries}


def with_tag(data: bytes, code: int, value: int, kind: int = 4) -> bytes:
    """Set a tag to one LONG (4) or SHORT (3)."""
    changed = bytearray(data)
    struct.pack_into("<HHII", changed, tags(data)[code], code, kind, 1, value)
    return bytes(changed)


def with_next_page(data: bytes, value: int) -> bytes:
    directory = number_fields(data)[2][0]
    (count,) = struct.unpack_from("<H", data, directory)
    at = directory + 2 + 12 * count
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


def with_strip(compression: int, strip: bytes) -> bytes:
    """A file of 12×16 pixels whose one strip is this."""
    plain = written(IDS, metadata=None)
    data = with_tag(plain, 259, compression, kind=3)
    data = with_tag(with_tag(data, 273, len(data)), 279, len(strip))
    return data + strip


def described(xml: str) -> bytes:
    return written(IDS, description=xml, metadata=None)


PLAIN = written(IDS, metadata=None)
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
OME = "<OME><Image><Pixels/></Image></OME>"

HOSTILE = {
    "a page that follows itself": (with_next_page(PLAIN, number_fields(PLAIN)[2][0]), "circle"),
    "a page outside the file": (with_next_page(PLAIN, 2**32 - 16), "outside the file"),
    "a size of 2^64 pixels": (
        with_tag(with_tag(PLAIN, 256, 2**32 - 1), 257, 2**32 - 1),
        r"4294967295.*(pixels in all|MAX_PIXELS)|truncated",
    ),
    "no height": (with_tag(PLAIN, 257, 0), "0×16"),
    "data behind the end": (with_tag(PLAIN, 273, 2**31), "cut short|outside"),
    "a strip of 4 GB": (with_tag(PLAIN, 279, 2**32 - 1), "cut short|outside"),
    "65535 samples a pixel": (with_tag(PLAIN, 277, 65535, kind=3), "65535|cannot be decoded"),
    "64 bits of a color map": (with_tag(PLAIN, 258, 64, kind=3), "truncated"),
    "a deflate bomb": (with_strip(8, zlib.compress(bytes(60_000_000), 9)), "decoded|unpacks"),
    "LZW without a table": (with_strip(5, b"\x80\x4b\x25\x80"), "after a Clear code"),
    "LZW that clears for ever": (
        with_strip(5, bytes.fromhex("804020100804020100") * 1000),
        "more Clear codes",
    ),
    "no deflate": (with_strip(8, b"\xff" * 40), "decoded"),
    "no JPEG": (with_strip(7, b"\xff\xd8" + b"\xff" * 40), "JPEG"),
    "PackBits that runs out": (with_strip(32773, b"\x7f"), "decoded"),
    "a billion laughs": (
        described(f'<?xml version="1.0"?><!DOCTYPE O [<!ENTITY l0 "ha">{LAUGHS}]>{OME}'),
        "declares entities",
    ),
    "a file read through XML": (
        described(f'<!DOCTYPE O [<!ENTITY x SYSTEM "file:///etc/passwd">]>{OME}'),
        "declares entities",
    ),
    "XML that does not end": (described("<OME><Image>" * 100), "broken OME-XML"),
    "a pickle": (b"\x80\x04cos\nsystem\n.", "no TIFF"),
    "half a header": (b"II*\0\x08", "incomplete header"),
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(tmp_path: Path, name: str, read) -> None:
    data, message = HOSTILE[name]
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with pytest.raises(CellDataError, match=message) as caught:
        read(path)
    assert caught.value.path == str(path) and caught.value.advice


def test_the_plain_file_that_they_are_made_of_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(PLAIN)
    np.testing.assert_array_equal(read_label_map(path), IDS)
    path.write_bytes(with_strip(5, imagecodecs.lzw_encode(IDS.tobytes())))
    np.testing.assert_array_equal(read_label_map(path), IDS)


def test_a_tile_far_longer_than_its_image(tmp_path: Path) -> None:
    tiled = written(IDS, metadata=None, tile=(16, 16), compression="lzw")
    path = tmp_path / "a.tif"
    path.write_bytes(with_tag(tiled, 323, 2**30))
    for read in READERS:
        with pytest.raises(CellDataError, match="tiles of 1073741824×16"):
            read(path)


def test_a_width_that_is_many_numbers(tmp_path: Path) -> None:
    described = bytearray(written(IDS, description='{"shape": [12, 16]}', metadata=None))
    at = tags(bytes(described))
    struct.pack_into("<HHII", described, at[256], 256, 4, 40, 8)
    struct.pack_into("<HHII", described, at[257], 257, 4, 1, 2**30)
    path = tmp_path / "a.tif"
    path.write_bytes(described)
    for read in (*READERS, read_size):
        with pytest.raises(CellDataError, match="cannot be decoded"):
            read(path)


def test_a_chain_of_two_pages_in_a_circle(tmp_path: Path) -> None:
    data = tiff_seeds()["pages"]
    order, _, directories = number_fields(data)
    (count,) = struct.unpack_from(f"{order}H", data, directories[1])
    at = directories[1] + 2 + 12 * count
    path = tmp_path / "a.tif"
    path.write_bytes(data[:at] + struct.pack(f"{order}I", directories[0]) + data[at + 4 :])
    for read in READERS:
        with pytest.raises(CellDataError, match="circle after page 2"):
            read(path)


@pytest.mark.parametrize("read", READERS)
def test_links_and_pipes(tmp_path: Path, read) -> None:
    loop, pipe, gone = (tmp_path / f"{name}.tif" for name in ("loop", "pipe", "gone"))
    loop.symlink_to(loop)
    gone.symlink_to("../nowhere.tif")
    os.mkfifo(pipe)
    for path, message in ((loop, "cannot be read"), (pipe, "a device or pipe"), (gone, "missing")):
        with pytest.raises(CellDataError, match=message):
            read(path)
    with pytest.raises(CellDataError, match="a device or pipe"):
        read(Path("/dev/zero"))
