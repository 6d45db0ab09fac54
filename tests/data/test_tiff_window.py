"""Windows against `read_image`, whose own tests say what the pixels are; and hostile files."""

from __future__ import annotations

import logging
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg_d2.data import tiff_window
from cellseg_d2.data.tiff import read_image
from cellseg_d2.data.tiff_window import ArrayWindows, open_windows
from cellseg_d2.errors import CellDataError

HEIGHT, WIDTH = 75, 101


@pytest.fixture
def tif(tmp_path: Path) -> Path:
    return tmp_path / "a.tif"


def image_of(channels: int = 3, dtype: type = np.uint8, top: int = 256) -> np.ndarray:
    return np.random.default_rng(7).integers(0, top, (HEIGHT, WIDTH, channels)).astype(dtype)


def assert_same_pixels(path: Path, **options) -> None:
    """The whole image, each border and windows anywhere."""
    expected = read_image(path, **options)
    height, width = expected.shape[:2]
    rng = np.random.default_rng(1)
    windows = [(0, 0, height, width), (height - 1, width - 1, 1, 1), (0, 0, 1, width)]
    for _ in range(25):
        top, left = rng.integers(0, height), rng.integers(0, width)
        bottom, right = rng.integers(top, height) + 1, rng.integers(left, width) + 1
        windows.append((top, left, bottom - top, right - left))
    with open_windows(path, **options) as image:
        assert (image.height, image.width, image.name) == (height, width, str(path))
        for top, left, rows, columns in windows:
            found = image.read(int(top), int(left), int(rows), int(columns))
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, expected[top : top + rows, left : left + columns])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 5},
        {"byteorder": ">"},
        {"compression": "lzw", "predictor": True, "rowsperstrip": 4},
        {"compression": "zlib", "rowsperstrip": 200},
        {"compression": "zlib", "predictor": True, "tile": (16, 32)},
        {"compression": "packbits", "rowsperstrip": 7},
        {"tile": (32, 16)},
        {"tile": (112, 128), "compression": "lzw", "bigtiff": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [3, 4])
def test_every_storage(tif: Path, options, planar: str, channels: int) -> None:
    image = image_of(channels)
    stored = image if planar == "contig" else image.transpose(2, 0, 1)
    tifffile.imwrite(tif, stored, photometric="rgb", planarconfig=planar, **options)
    assert_same_pixels(tif)
    assert_same_pixels(tif, channel_order="BGR")


@pytest.mark.parametrize("tile", [None, (16, 16), (64, 48)])
@pytest.mark.parametrize("colorspace", ["rgb", "ycbcr"])
def test_jpeg(tif: Path, tile, colorspace: str) -> None:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([rows, columns, rows + columns], axis=2).astype(np.uint8)
    arguments = {"level": 95, "outcolorspace": colorspace}
    options = {"photometric": "rgb", "compression": "jpeg", "compressionargs": arguments}
    tifffile.imwrite(tif, image, tile=tile, **options)
    assert_same_pixels(tif)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1"])
def test_grey_palette_and_bits(tif: Path, mode: str) -> None:
    Image.fromarray(image_of()).convert(mode).save(tif, compression="tiff_lzw")
    assert_same_pixels(tif)
    Image.fromarray(image_of()).convert(mode).save(tif)
    assert_same_pixels(tif)


def test_inverted_grey(tif: Path) -> None:
    tifffile.imwrite(tif, image_of(1)[:, :, 0], photometric="miniswhite", tile=(16, 16))
    assert_same_pixels(tif)


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"compression": "lzw"}], ids=str)
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.float32, np.float64])
def test_depths_by_the_range_of_the_whole_image(tif: Path, caplog, dtype, options) -> None:
    caplog.set_level(logging.INFO)
    image = image_of(4, dtype, 4000)
    image[:, :, 3] = 30000  # alpha takes no part
    image[0, 0, 0], image[70, 100, 2] = 0, 5000  # in windows that others do not see
    tifffile.imwrite(tif, image, photometric="rgb", **options)
    assert_same_pixels(tif)
    assert_same_pixels(tif, intensity_range=(100, 3000))
    assert caplog.text.count("measured range") == 1  # said once a file


def test_a_stated_range_needs_no_look_at_the_pixels(tif: Path, monkeypatch) -> None:
    extra = [(340, "H", 1, 200, True), (341, "H", 1, 1200, True)]
    grey = image_of(1, np.uint16, 1500)[:, :, 0]
    tifffile.imwrite(tif, grey, photometric="minisblack", extratags=extra, tile=(16, 16))
    monkeypatch.setattr(tiff_window, "decode_blocks", None)
    assert_same_pixels(tif)
    tifffile.imwrite(tif, grey, photometric="minisblack", tile=(16, 16))
    with pytest.raises(CellDataError):
        open_windows(tif)
    assert_same_pixels(tif, intensity_range=(0, 1500))


def test_the_first_of_several_pages(tif: Path) -> None:
    tifffile.imwrite(tif, np.stack([image_of(), image_of() + 9]), photometric="rgb", tile=(16, 16))
    assert_same_pixels(tif)


def test_arrays() -> None:
    image = image_of()
    with ArrayWindows(image, "name") as windows:
        assert (windows.height, windows.width, windows.name) == (HEIGHT, WIDTH, "name")
        np.testing.assert_array_equal(windows.read(3, 4, 10, 20), image[3:13, 4:24])
    for bad in (image[:, :, 0], image[:, :, :2], image.astype(np.uint16)):
        with pytest.raises(ValueError, match="uint8"):
            ArrayWindows(bad)


@pytest.mark.parametrize(
    "window",
    [(0, 0, 0, 5), (0, 0, 5, 0), (-1, 0, 5, 5), (0, -1, 5, 5), (70, 0, 6, 5), (0, 100, 5, 2)],
)
def test_windows_lie_inside_the_image(tif: Path, window) -> None:
    tifffile.imwrite(tif, image_of(), photometric="rgb")
    with open_windows(tif) as image, pytest.raises(ValueError, match="75×101"):
        image.read(*window)
    with pytest.raises(ValueError, match="75×101"):
        ArrayWindows(image_of()).read(*window)


# ---------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 400_000),
        ({"tile": (64, 64), "compression": "zlib"}, 700_000),
        ({"rowsperstrip": 50, "compression": "zlib"}, 1_900_000),
    ],
    ids=str,
)
def test_no_more_is_held_than_a_window_and_the_blocks_it_meets(tif, options, limit: int) -> None:
    # Oracle: the image has 12 MB, a window .12, its tiles up to .31, its strips 1.2.
    tifffile.imwrite(tif, np.zeros((2000, 2000, 3), np.uint8), photometric="rgb", **options)
    with open_windows(tif) as image:
        image.read(0, 0, 200, 200)
        tracemalloc.start()
        for top in range(0, 2000, 200):
            for left in range(0, 2000, 200):
                image.read(top, left, 200, 200)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < limit


@pytest.mark.parametrize(
    ("options", "blocks"),
    [({"tile": (16, 16)}, range(3 * 7)), ({"rowsperstrip": 8, "compression": "lzw"}, range(5))],
    ids=str,
)
def test_blocks_are_decoded_once_for_a_row_of_windows(tif, monkeypatch, options, blocks) -> None:
    tifffile.imwrite(tif, image_of(), photometric="rgb", **options)
    calls = []
    decode = tiff_window.decode_block

    def counted(first, number):
        calls.append(number)
        return decode(first, number)

    monkeypatch.setattr(tiff_window, "decode_block", counted)
    with open_windows(tif) as image:
        for left in (0, 20, 40, 60, 80):
            image.read(0, left, 40, 21)
    assert sorted(calls) == list(blocks)


def test_the_size_of_the_image_is_not_limited_but_that_of_its_blocks(tif: Path) -> None:
    image = image_of()
    for options in ({}, {"tile": (16, 16)}, {"compression": "lzw", "rowsperstrip": 4}):
        tifffile.imwrite(tif, image, photometric="rgb", **options)
        with pytest.raises(CellDataError, match="MAX_PIXELS"):
            read_image(tif, max_pixels=500)
        with open_windows(tif, max_pixels=500) as windows:
            np.testing.assert_array_equal(windows.read(0, 0, HEIGHT, WIDTH), image)
    tifffile.imwrite(tif, image, photometric="rgb", compression="lzw", rowsperstrip=HEIGHT)
    with pytest.raises(CellDataError, match="compressed strips or tiles of 75×101") as caught:
        open_windows(tif, max_pixels=500)
    assert "vips tiffsave" in caught.value.advice and str(tif) in str(caught.value)


# --------------------------------------------------------------------------- hostile files


def test_what_read_image_refuses_is_refused(tif: Path, tmp_path: Path) -> None:
    def refused(*words: str) -> None:
        with pytest.raises(CellDataError) as expected:
            read_image(tif)
        with pytest.raises(CellDataError) as found:
            open_windows(tif)
        assert str(found.value) == str(expected.value)
        for word in words:
            assert word in str(found.value)

    refused("no such file")
    tif.write_bytes(b"not a TIFF, for sure")
    refused("no TIFF")
    tifffile.imwrite(tif, image_of(5), photometric="minisblack", planarconfig="contig")
    refused("5 samples")
    tifffile.imwrite(tif, np.full((4, 4), np.nan, np.float32), photometric="minisblack")
    refused("finite")
    for options in ({}, {"compression": "lzw"}, {"tile": (16, 16)}):
        tifffile.imwrite(tif, image_of(), photometric="rgb", rowsperstrip=None, **options)
        data = tif.read_bytes()
        with tifffile.TiffFile(tif) as file:
            page = file.pages.first
            end = max(o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True))
        assert end == len(data)  # tags come first, pixels last
        tif.write_bytes(data[:-10])
        refused("cut short by 10 bytes")
    for arguments in ({"channel_order": "rgb"}, {"intensity_range": (5, 5)}):
        with pytest.raises(ValueError, match="must be"):
            open_windows(tif, **arguments)


def test_damage_shows_when_it_is_read(tif: Path) -> None:
    tifffile.imwrite(tif, image_of(), photometric="rgb", compression="zlib", tile=(16, 16))
    with tifffile.TiffFile(tif) as file:
        offset = file.pages.first.dataoffsets[10]
    data = bytearray(tif.read_bytes())
    data[offset : offset + 20] = bytes(20)
    tif.write_bytes(data)
    with open_windows(tif) as image:
        image.read(0, 0, 16, 48)
        with pytest.raises(CellDataError, match="cannot be decoded"):
            image.read(16, 0, 16, WIDTH)
        image.read(32, 0, 16, WIDTH)


def test_a_file_that_shrinks_while_it_is_read(tif: Path) -> None:
    for options in ({}, {"tile": (16, 16)}):
        tifffile.imwrite(tif, np.zeros((3000, 300, 3), np.uint8), photometric="rgb", **options)
        with open_windows(tif) as image:
            with open(tif, "r+b") as file:
                file.truncate(100_000)
            with pytest.raises(CellDataError, match="truncated"):
                image.read(2900, 0, 50, 50)


def test_errors_of_the_caller_are_its_own(tif: Path) -> None:
    tifffile.imwrite(tif, image_of(), photometric="rgb")
    with pytest.raises(KeyError), open_windows(tif) as image:
        raise KeyError(image.name)
    with pytest.raises(CellDataError, match="cannot be"):  # closed
        image.read(0, 0, 4, 4)


def test_a_bomb_of_one_strip_is_refused_without_memory(tif: Path) -> None:
    side = 60_000
    tifffile.imwrite(tif, np.zeros((2, 2), np.uint8), compression="zlib", photometric="minisblack")
    data = bytearray(tif.read_bytes())
    with tifffile.TiffFile(tif) as file:
        tags = {code: file.pages.first.tags[code] for code in (256, 257, 278)}
    for tag in tags.values():
        struct.pack_into("<H" if tag.dtype == 3 else "<I", data, tag.valueoffset, side)
    tif.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(CellDataError, match="60000×60000"):
        open_windows(tif)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
