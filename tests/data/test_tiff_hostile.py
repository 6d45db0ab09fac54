"""The TIFF reader against files that are broken, cut, mutated or made to do harm."""

from __future__ import annotations

import logging
import os
import pickle
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg_d2.data import tiff_structure
from cellseg_d2.data.tiff import read_image, read_label_map, read_size
from cellseg_d2.errors import CellDataError

from .tiff_files import (
    HEIGHT,
    WIDTH,
    assert_refused,
    build_tiff,
    color_image,
    id_map,
    jpeg_file,
    tag,
)

READERS = [read_image, read_label_map, read_size]


@pytest.mark.parametrize("read", READERS)
def test_what_is_not_there_or_not_a_tiff(tmp_path: Path, monkeypatch, read) -> None:
    assert_refused(tmp_path / "no.tif", "no such file", read=read)
    assert_refused(tmp_path, "a folder", read=read)
    link = tmp_path / "link.tif"
    link.symlink_to(tmp_path / "gone.tif")
    assert_refused(link, "a link to a file that is missing", read=read)
    loop = tmp_path / "loop.tif"
    loop.symlink_to(loop)
    assert_refused(loop, "cannot be read", read=read)
    pipe = tmp_path / "pipe.tif"
    os.mkfifo(pipe)
    assert_refused(pipe, "a device or pipe", read=read)
    empty = tmp_path / "empty.tif"
    empty.touch()
    assert_refused(empty, "0 bytes", read=read)
    for content in (b"I", b"II", b"\x89PNG\r\n\x1a\n" + bytes(64), b"II\x2b\x01" + bytes(64)):
        other = tmp_path / "other.tif"
        other.write_bytes(content)
        assert_refused(other, "no TIFF", read=read)
    with pytest.raises(CellDataError):
        read("a\0b.tif")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tiff_structure, "open", refuse, raising=False)
    assert_refused(other, "Permission denied", "permissions", read=read)


def test_errors_keep_their_cause_and_survive_pickling(tif: Path) -> None:
    tif.write_bytes(build_tiff(8, 8, b"no deflate", change={259: tag(259, 8, kind=3)}))
    error = assert_refused(tif, "cannot be decoded")
    assert error.__cause__ is not None
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and copy.path == str(tif)


@pytest.mark.parametrize(("error", "words"), [(MemoryError, "memory"), (OSError, "cannot be read")])
def test_faults_while_decoding(tif: Path, monkeypatch, error: type, words: str) -> None:
    tifffile.imwrite(tif, id_map(), compression="zlib")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tifffile.TiffPage, "decode", fail)
    assert isinstance(assert_refused(tif, words).__cause__, error)
    monkeypatch.setattr(tifffile.TiffPage, "decode", lambda *_, **__: exec("raise SystemExit"))
    with pytest.raises(SystemExit):
        read_image(tif)


def refused_without_memory(path: Path, *words: str, read=read_image, **options) -> None:
    """Refused, and without more than a megabyte at any time."""
    assert_refused(path, *words, read=read, **options)  # caches of the libraries fill up
    tracemalloc.start()
    assert_refused(path, *words, read=read, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("read", [read_image, read_label_map])
def test_declared_sizes_are_refused_from_the_header(tif: Path, read) -> None:
    def refused(*words: str, height: int = 1, width: int = 1, **options) -> None:
        tif.write_bytes(build_tiff(height, width, **options))
        refused_without_memory(tif, *words, read=read)

    refused("pixels in all", height=2**31, width=2**31)
    assert read_size(tif) == (2**31, 2**31)
    refused("pixels in all", height=10_001, width=10_000)
    refused("0×1", height=0)
    refused("1×0", width=0)
    refused("60000", change={277: tag(277, 60_000, kind=3), 284: tag(284, 2, kind=3)})
    refused("60000", change={277: tag(277, 60_000, kind=3)})
    refused("volume", change={32997: tag(32997, 100_000)})
    tiles = {273: None, 278: None, 279: None, 324: tag(324, 8), 325: tag(325, 1)}
    tiles |= {322: tag(322, 2**20), 323: tag(323, 2**20)}
    refused("tiles of 1048576×1048576", change=tiles)
    tiles |= {322: tag(322, 0)}
    refused("", change=tiles)
    refused("", change={278: tag(278, 0)})
    refused("outside the file", change={273: (273, 4, 2**30, b"\x08\0\0\0")})
    # As many strips as rows, only one of them there.
    refused("1 of 9000", height=9000, width=9000, change={278: tag(278, 1)})
    refused("", height=9000, width=9000)


def test_max_pixels_is_inclusive(tif: Path) -> None:
    tifffile.imwrite(tif, id_map(np.uint8))
    for read in (read_image, read_label_map):
        assert read(tif, max_pixels=HEIGHT * WIDTH).shape[:2] == (HEIGHT, WIDTH)
        assert_refused(tif, "37×53", "MAX_PIXELS", read=read, max_pixels=HEIGHT * WIDTH - 1)


def test_bombs_are_refused_or_cut(tif: Path) -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    tif.write_bytes(build_tiff(4, 4, bomb, change={259: tag(259, 8, kind=3)}))
    refused_without_memory(tif, "decoded")
    zeros = np.zeros((5000, 5000), np.uint8)
    tifffile.imwrite(tif, zeros, compression="lzw", rowsperstrip=5000)
    with tifffile.TiffFile(tif) as file:
        strip = file.pages.first
        start, count = strip.dataoffsets[0], strip.databytecounts[0]
    data = tif.read_bytes()[start : start + count]
    tif.write_bytes(build_tiff(4, 4, data, change={259: tag(259, 5, kind=3)}))
    tracemalloc.start()
    assert not read_image(tif).any()  # only the declared 16 bytes are decoded
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_jpeg_streams_are_measured_before_they_are_decoded(tif: Path) -> None:
    data = bytearray(jpeg_file(tif))
    frame = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, frame + 5, 65_500, 65_500)
    tif.write_bytes(data)
    refused_without_memory(tif, "65500×65500", "37×53")
    data = bytearray(jpeg_file(tif))
    end = data.index(b"\xff\xd9", data.index(b"\xff\xda"))
    data[end : end + 2] = b"\0\0"
    tif.write_bytes(data)
    assert_refused(tif, "incomplete JPEG")


def test_missing_strips_are_no_zeros(tif: Path) -> None:
    # tifffile's own answer is black rows and a message in the log.
    for offset, count in ((0, 1), (8, 0)):
        tif.write_bytes(build_tiff(change={273: tag(273, offset), 279: tag(279, count)}))
        assert_refused(tif, "no data for strip or tile 0")
    tif.write_bytes(build_tiff(change={279: tag(279, 10_000)}))
    assert_refused(tif, "cut short by")
    for compression, strip in ((5, b"\x80\x0b"), (8, zlib.compress(bytes(60))), (32773, b"\xc6\0")):
        change = {259: tag(259, compression, kind=3)}
        tif.write_bytes(build_tiff(8, 8, strip, change=change))
        assert_refused(tif, "decoded")


@pytest.mark.parametrize("at", ["itself", "second"])
def test_cyclic_chains_of_pages(tif: Path, at: str) -> None:
    page = build_tiff()
    if at == "itself":
        tif.write_bytes(build_tiff(next_page=9))
    else:
        second = len(page)
        directory = page[9:]
        tif.write_bytes(build_tiff(next_page=second) + directory[:-4] + struct.pack("<I", 9))
    for read in READERS:
        assert_refused(tif, "circle", read=read)


def test_chain_that_leaves_the_file(tif: Path) -> None:
    tif.write_bytes(build_tiff(next_page=100_000))
    assert_refused(tif, "page 2 outside the file")


def test_ome_xml(tif: Path) -> None:
    def write(xml: str) -> None:
        tifffile.imwrite(tif, id_map(np.uint8), description=xml, metadata=None)

    head = '<?xml version="1.0" encoding="UTF-8"?>'
    write(head + '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image>')
    for read in (read_image, read_label_map):
        assert_refused(tif, "broken OME-XML", read=read)
    write(head + '<!DOCTYPE a [<!ENTITY b "c">]><OME><Image ID="&b;"/></OME>')
    assert_refused(tif, "declares entities")
    write(head + '<OME><Image><Pixels SignificantBits="many"/></Image></OME>')
    assert read_image(tif).shape == (HEIGHT, WIDTH, 3)
    write("a note on <the> specimen")
    assert read_image(tif).shape == (HEIGHT, WIDTH, 3)


def test_unsupported_compression(tif: Path) -> None:
    tif.write_bytes(build_tiff(change={259: tag(259, 34712, kind=3)}))
    assert_refused(tif, "compression", "deflate")


def small_files(folder: Path) -> list[tuple[Path, object]]:
    """Small valid files of many kinds, with the reader for each."""
    image, ids = color_image()[:9, :11], id_map()[:9, :11]
    rgb = {"photometric": "rgb"}
    kinds = {
        "plain": (image, rgb, read_image),
        "lzw": (image, {**rgb, "compression": "lzw", "predictor": True, "rowsperstrip": 4}, None),
        "deflate": (image, {**rgb, "compression": "zlib", "tile": (16, 16)}, None),
        "packbits": (image, {**rgb, "compression": "packbits", "planarconfig": "separate"}, None),
        "deep": (image.astype(np.uint16) * 200, {**rgb, "compression": "zlib"}, None),
        "pages": (np.stack([image, image]), {**rgb, "compression": "lzw"}, None),
        "ome": (ids.astype(np.uint16), {"ome": True, "compression": "zlib"}, None),
        "float": (ids.astype(float), {"compression": "lzw", "bigtiff": True}, read_label_map),
        "ids": (ids, {"rowsperstrip": 2, "byteorder": ">"}, read_label_map),
    }
    files = []
    for name, (array, options, read) in kinds.items():
        path = folder / f"{name}.tif"
        if name == "packbits":
            array = array.transpose(2, 0, 1)
        tifffile.imwrite(path, array, **options)
        files.append((path, read or read_image))
    jpeg_file(folder / "jpeg.tif", (16, 24))
    palette = Image.fromarray(image).convert("P")
    palette.save(folder / "palette.tif", compression="tiff_lzw")
    return [*files, (folder / "jpeg.tif", read_image), (folder / "palette.tif", read_image)]


def test_a_file_cut_anywhere_is_refused_or_gives_the_same_array(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    cut = tmp_path / "cut.tif"
    for path, read in small_files(tmp_path):
        data, expected = path.read_bytes(), read(path)
        # All of the last bytes, where writers put directories, and a sample of the others.
        lengths = {*rng.choice(len(data), 60), *range(len(data) - 20, len(data))}
        refused = 0
        for length in sorted(lengths):
            cut.write_bytes(data[:length])
            try:
                np.testing.assert_array_equal(read(cut), expected)
            except CellDataError:
                refused += 1
        assert refused >= len(lengths) // 2, path


def test_mutated_files_end_in_an_array_or_an_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(12)
    mutated = tmp_path / "mutated.tif"
    logging.getLogger("tifffile").disabled = True
    outcomes = {"read": 0, "refused": 0}
    try:
        for path, read in small_files(tmp_path):
            data = path.read_bytes()
            for _ in range(30):
                changed = bytearray(data)
                for _ in range(rng.integers(1, 4)):
                    # Headers and directories are a small part of a file, and the richer one.
                    end = len(data) if rng.random() < 0.5 else min(len(data), 400)
                    changed[rng.integers(0, end)] = rng.integers(0, 256)
                mutated.write_bytes(changed)
                try:
                    array = read(mutated, max_pixels=1_000_000)
                except CellDataError:
                    outcomes["refused"] += 1
                else:
                    outcomes["read"] += 1
                    assert array.ndim == (3 if read is read_image else 2)
                    assert array.dtype == (np.uint8 if read is read_image else np.int32)
                    assert read is read_image or array.min() >= 0
    finally:
        logging.getLogger("tifffile").disabled = False
    assert min(outcomes.values()) > 50  # else the mutations would be too weak or too wild
