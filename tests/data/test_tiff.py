"""The TIFF reader against the arrays that were written, and against hostile files."""

from __future__ import annotations

import logging
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg_d2.data import tiff_structure
from cellseg_d2.data.tiff import MAX_ID, read_image, read_label_map, read_size
from cellseg_d2.errors import CellDataError

HEIGHT, WIDTH = 37, 53  # neither a multiple of the other tests' strips and tiles, nor square


@pytest.fixture
def tif(tmp_path: Path) -> Path:
    return tmp_path / "a.tif"


def color_image(channels: int = 3, dtype: type = np.uint8, top: int = 256) -> np.ndarray:
    """Random values, so that no two channels, rows or pixels can be mistaken for each other."""
    rng = np.random.default_rng(7)
    return rng.integers(0, top, (HEIGHT, WIDTH, channels)).astype(dtype)


def smooth_image() -> np.ndarray:
    """Slow gradients, different in each channel, which JPEG keeps within a few levels."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    channels = [30 + 4 * rows, 220 - 3 * columns, 60 + rows + columns]
    return np.stack(channels, axis=2).astype(np.uint8)


def id_map(dtype: type = np.int32, top: int = 120) -> np.ndarray:
    return np.random.default_rng(3).integers(0, top, (HEIGHT, WIDTH)).astype(dtype)


def tag(code: int, *values: int, kind: int = 4) -> tuple[int, int, int, bytes]:
    """A tag of LONG (4) or SHORT (3) values."""
    return code, kind, len(values), struct.pack(f"<{len(values)}{'HI'[kind == 4]}", *values)


def build_tiff(
    height: int = 1,
    width: int = 1,
    data: bytes = b"\x05",
    next_page: int = 0,
    change: dict[int, tuple[int, int, int, bytes] | None] | None = None,
) -> bytes:
    """A one-strip, 8-bit grey TIFF, little-endian, with tags changed, added or (None) left out."""
    tags: dict[int, tuple[int, int, int, bytes] | None] = {
        256: tag(256, width),
        257: tag(257, height),
        258: tag(258, 8, kind=3),
        259: tag(259, 1, kind=3),
        262: tag(262, 1, kind=3),
        273: tag(273, 8),
        277: tag(277, 1, kind=3),
        278: tag(278, height),
        279: tag(279, len(data)),
    }
    tags.update(change or {})
    entries = [tags[code] for code in sorted(tags) if tags[code] is not None]
    directory_at = 8 + len(data)
    values_at = directory_at + 2 + 12 * len(entries) + 4
    directory, values = struct.pack("<H", len(entries)), b""
    for code, kind, count, value in entries:  # type: ignore[misc]
        if len(value) > 4:
            field = struct.pack("<I", values_at + len(values))
            values += value
        else:
            field = value.ljust(4, b"\0")
        directory += struct.pack("<HHI", code, kind, count) + field
    head = struct.pack("<2sHI", b"II", 42, directory_at)
    return head + data + directory + struct.pack("<I", next_page) + values


def jpeg_file(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH)) -> bytes:
    image = Image.fromarray(smooth_image()).resize(size[::-1])
    image.save(path, compression="jpeg")
    return path.read_bytes()


def assert_refused(path: Path, *words: str, read=read_image, **options) -> CellDataError:
    with pytest.raises(CellDataError) as caught:
        read(path, **options)
    for word in (str(path), *words):
        assert word in str(caught.value)
    return caught.value


# ---------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "lzw"},
        {"compression": "lzw", "predictor": True, "rowsperstrip": 4},
        {"compression": "zlib", "rowsperstrip": 8},
        {"compression": "zlib", "predictor": True, "tile": (16, 32)},
        {"compression": "packbits"},
        {"tile": (64, 64)},
        {"rowsperstrip": 5},
        {"byteorder": ">"},
        {"bigtiff": True, "compression": "lzw"},
    ],
    ids=str,
)
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [3, 4])
def test_color_images_of_every_storage(tif: Path, options, planar: str, channels: int) -> None:
    image = color_image(channels)
    stored = image if planar == "contig" else image.transpose(2, 0, 1)
    tifffile.imwrite(tif, stored, photometric="rgb", planarconfig=planar, **options)
    result = read_image(tif)
    assert result.dtype == np.uint8 and result.flags.c_contiguous
    np.testing.assert_array_equal(result, image[:, :, :3])
    swapped = read_image(tif, "BGR")
    assert swapped.flags.c_contiguous
    np.testing.assert_array_equal(swapped, image[:, :, 2::-1])
    assert read_size(tif) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits"])
def test_images_that_pillow_writes(tif: Path, mode: str, compression: str | None) -> None:
    image = Image.fromarray(color_image()).convert(mode)
    image.save(tif, compression=compression)
    expected = image.convert("RGBA").convert("RGB") if mode != "LA" else image.convert("L")
    np.testing.assert_array_equal(read_image(tif), np.asarray(expected.convert("RGB")))


@pytest.mark.parametrize(("mode", "photometric"), [("YCbCr", 6), ("RGB", 2), ("L", 1)])
def test_jpeg_that_pillow_writes(tif: Path, mode: str, photometric: int) -> None:
    image = Image.fromarray(smooth_image()).convert(mode)
    image.save(tif, compression="jpeg", quality=95)
    with tifffile.TiffFile(tif) as file:
        assert file.pages.first.compression == 7
        assert file.pages.first.photometric == photometric
    difference = read_image(tif).astype(int) - np.asarray(image.convert("RGB"))
    assert np.abs(difference).max() <= 8


@pytest.mark.parametrize("tile", [None, (16, 16), (64, 64)])
@pytest.mark.parametrize("colorspace", ["rgb", "ycbcr"])
def test_jpeg_by_tifffile_in_tiles(tif: Path, tile, colorspace: str) -> None:
    image = smooth_image()
    tifffile.imwrite(
        tif,
        image,
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": 95, "outcolorspace": colorspace},
        tile=tile,
    )
    result = read_image(tif)
    np.testing.assert_array_equal(result, tifffile.imread(tif))
    # Zeros that fill up the last tiles spoil the blocks of 16 pixels at the border.
    assert np.abs(result.astype(int) - image)[:32, :48].max() <= 8


def test_white_is_zero(tif: Path) -> None:
    grey = color_image(1)[:, :, 0]
    tifffile.imwrite(tif, grey, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tif), np.repeat(255 - grey[:, :, None], 3, axis=2))


def test_boolean_image_is_black_and_white(tif: Path) -> None:
    bits = color_image(1)[:, :, 0] > 127
    tifffile.imwrite(tif, bits, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tif)[:, :, 1], bits * np.uint8(255))


def test_palette_of_16_bit_colors(tif: Path) -> None:
    indices = color_image(1)[:, :, 0]
    colors = np.random.default_rng(1).integers(0, 65536, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tif, indices, photometric="palette", colormap=colors)
    np.testing.assert_array_equal(read_image(tif), (colors >> 8).astype(np.uint8).T[indices])


def test_grey_samples_read_as_color_are_warned_of(tif: Path, caplog) -> None:
    image = color_image()
    tifffile.imwrite(tif, image, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(read_image(tif), image)
    assert "read as RGB" in caplog.text


@pytest.mark.parametrize("channels", [2, 5, 7])
def test_second_channels_and_spectra(tif: Path, caplog, channels: int) -> None:
    image = color_image(channels)
    tifffile.imwrite(tif, image, photometric="minisblack", planarconfig="contig")
    if channels == 2:
        np.testing.assert_array_equal(read_image(tif)[:, :, 2], image[:, :, 0])
        assert "second sample is ignored" in caplog.text
    else:
        assert_refused(tif, f"{channels} samples", "RGB")


@pytest.mark.parametrize("photometric", ["separated", "cielab"])
def test_other_color_spaces_are_refused(tif: Path, photometric: str) -> None:
    channels = 4 if photometric == "separated" else 3
    tifffile.imwrite(tif, color_image(channels), photometric=photometric)
    assert_refused(tif, "colour space", "8-bit RGB")


def test_ycbcr_without_jpeg_is_refused(tif: Path) -> None:
    tifffile.imwrite(tif, color_image(), photometric="ycbcr", subsampling=(1, 1))
    assert_refused(tif, "YCBCR")


@pytest.mark.parametrize("pages", [2, 5])
@pytest.mark.parametrize("options", [{}, {"ome": True}, {"imagej": True}], ids=str)
def test_first_page_of_a_stack(tif: Path, caplog, pages: int, options) -> None:
    stack = np.stack([color_image() + np.uint8(page) for page in range(pages)])
    tifffile.imwrite(tif, stack, photometric="rgb", **options)
    np.testing.assert_array_equal(read_image(tif), stack[0])
    assert f"the first of {pages} pages" in caplog.text


@pytest.mark.parametrize("value", [2, 3, 6, 8])
def test_orientation_is_refused(tif: Path, value: int) -> None:
    tif.write_bytes(build_tiff(change={274: tag(274, value, kind=3)}))
    for read in (read_image, read_label_map, read_size):
        assert_refused(tif, "orientation", "upright", read=read)
    tif.write_bytes(build_tiff(change={274: tag(274, 1, kind=3)}))
    assert read_image(tif).tolist() == [[[5, 5, 5]]]


def test_channel_order_and_range_are_checked_before_the_file() -> None:
    with pytest.raises(ValueError, match="channel_order"):
        read_image("missing.tif", "rgb")
    for bad in ((5, 5), (9, 2), (0, float("nan"))):
        with pytest.raises(ValueError, match="intensity_range"):
            read_image("missing.tif", intensity_range=bad)


# ------------------------------------------------------------------------- depth and range


def expected_levels(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """The definition, in exact enough arithmetic: linear, clipped, to the nearest level."""
    scaled = (image.astype(np.float64) - low) / (high - low) * 255
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.int32, np.uint64])
def test_measured_range_is_one_for_all_channels(tif: Path, caplog, dtype: type) -> None:
    caplog.set_level(logging.INFO)
    image = color_image(4, dtype, 4000)
    image[:, :, 3] = 30000  # alpha takes no part
    image[0, 0, 0], image[0, 1, 2] = 100, 5000
    tifffile.imwrite(tif, image, photometric="rgb")
    color = image[:, :, :3]
    np.testing.assert_array_equal(read_image(tif), expected_levels(color, color.min(), 5000))
    assert "the measured range" in caplog.text and "..5000" in caplog.text


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("codes", [(340, 341), (280, 281)])
def test_stated_range(tif: Path, caplog, dtype: type, codes: tuple[int, int]) -> None:
    caplog.set_level(logging.INFO)
    image = color_image(1, dtype, 1500)[:, :, 0]
    extra = [(codes[0], "H", 1, 200, True), (codes[1], "H", 1, 1200, True)]
    tifffile.imwrite(tif, image, photometric="minisblack", extratags=extra)
    np.testing.assert_array_equal(read_image(tif)[:, :, 0], expected_levels(image, 200, 1200))
    assert "SampleValue" in caplog.text
    given = read_image(tif, intensity_range=(0, 3000))
    np.testing.assert_array_equal(given[:, :, 0], expected_levels(image, 0, 3000))
    assert "intensity_range" in caplog.text


def test_an_empty_stated_range_is_ignored_with_a_warning(tif: Path, caplog) -> None:
    image = color_image(1, np.uint16, 1500)[:, :, 0]
    extra = [(340, "H", 1, 7, True), (341, "H", 1, 7, True)]
    tifffile.imwrite(tif, image, photometric="minisblack", extratags=extra)
    expected = expected_levels(image, image.min(), image.max())
    np.testing.assert_array_equal(read_image(tif)[:, :, 0], expected)
    assert "ignoring SMin/SMaxSampleValue" in caplog.text


def test_ome_significant_bits(tif: Path) -> None:
    image = color_image(1, np.uint16, 3000)[:, :, 0]
    options = {"photometric": "minisblack", "ome": True}
    tifffile.imwrite(tif, image, metadata={"SignificantBits": 12}, **options)
    np.testing.assert_array_equal(read_image(tif)[:, :, 0], expected_levels(image, 0, 4095))
    # 16 of 16 bits is what writers fill in where they know nothing.
    tifffile.imwrite(tif, image, metadata={"SignificantBits": 16}, **options)
    measured = expected_levels(image, image.min(), image.max())
    np.testing.assert_array_equal(read_image(tif)[:, :, 0], measured)


def test_packed_depths_span_their_bits(tif: Path) -> None:
    data = bytes([0x0F, 0x5A])  # four 4-bit samples: 0, 15, 5, 10
    tif.write_bytes(build_tiff(1, 4, data, change={258: tag(258, 4, kind=3)}))
    assert read_image(tif)[0, :, 0].tolist() == [0, 255, 85, 170]
    assert read_label_map(tif).tolist() == [[0, 15, 5, 10]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_conventions(tif: Path, caplog, dtype: type) -> None:
    caplog.set_level(logging.INFO)
    unit = (color_image(1)[:, :, 0] / 300).astype(dtype)
    for image, low, high in (
        (unit, 0, 1),
        (unit * 200, 0, 255),
        (unit * 900, None, None),
        (unit - dtype(0.5), None, None),
    ):
        tifffile.imwrite(tif, image, photometric="minisblack")
        low, high = (image.min(), image.max()) if low is None else (low, high)
        expected = expected_levels(image, float(low), float(high))
        np.testing.assert_array_equal(read_image(tif)[:, :, 0], expected)
    assert "convention for floats" in caplog.text and "measured" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_no_numbers_are_refused(tif: Path, value: float) -> None:
    image = np.zeros((4, 4), np.float32)
    image[1, 2] = value
    tifffile.imwrite(tif, image, photometric="minisblack")
    assert_refused(tif, "finite")
    assert_refused(tif, "finite", intensity_range=(0, 1))


def test_constant_16_bit_image_is_black_and_8_bits_are_never_scaled(tif: Path) -> None:
    tifffile.imwrite(tif, np.full((3, 4), 777, np.uint16), photometric="minisblack")
    assert not read_image(tif).any()
    grey = color_image(1)[:, :, 0] // 2
    extra = [(340, "B", 1, 10, True), (341, "B", 1, 20, True)]
    tifffile.imwrite(tif, grey, photometric="minisblack", extratags=extra)
    np.testing.assert_array_equal(read_image(tif, intensity_range=(0, 4095))[:, :, 0], grey)


# ----------------------------------------------------------------------------------- masks

MASK_TYPES = [np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32]
MASK_TYPES += [np.uint64, np.int64, np.float16, np.float32, np.float64]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 2},
        {"compression": "lzw", "rowsperstrip": 3},
        {"compression": "zlib", "byteorder": ">"},
        {"compression": "packbits"},
        {"compression": "lzw", "tile": (16, 32)},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", MASK_TYPES)
def test_masks_of_every_type(tif: Path, dtype: type, options) -> None:
    ids = id_map(dtype)
    tifffile.imwrite(tif, ids, photometric="minisblack", **options)
    result = read_label_map(tif, expected_size=(HEIGHT, WIDTH))
    assert result.dtype == np.int32 and result.flags.c_contiguous and result.flags.writeable
    np.testing.assert_array_equal(result, ids.astype(np.int32))


@pytest.mark.parametrize("dtype", [np.float64, np.uint32, np.int64, np.uint64, np.int32])
def test_largest_id(tif: Path, dtype: type) -> None:
    ids = id_map(dtype)
    ids[5, 6] = MAX_ID
    tifffile.imwrite(tif, ids, photometric="minisblack")
    assert read_label_map(tif)[5, 6] == MAX_ID


@pytest.mark.parametrize(
    ("dtype", "value", "fault"),
    [
        (np.float64, 2.0**31, "too large"),
        (np.float64, 1e300, "too large"),
        (np.float64, 3.5, "fractional"),
        (np.float64, 1e-300, "fractional"),
        (np.float64, -1.0, "negative"),
        (np.float64, -(2.0**31), "negative"),
        (np.float64, np.nan, "no number"),
        (np.float64, np.inf, "no number"),
        (np.float64, -np.inf, "no number"),
        (np.float32, 2.0**24 + 2, "too large for float32"),
        (np.float32, 0.5, "fractional"),
        (np.float32, np.nan, "no number"),
        (np.float16, 2050.0, "too large for float16"),
        (np.uint32, 2**31, "too large"),
        (np.uint32, 2**32 - 1, "too large"),
        (np.int64, 2**32 + 5, "too large"),
        (np.int64, -(2**32) + 5, "negative"),
        (np.uint64, 2**64 - 1, "too large"),
        (np.uint64, 2**63 + 7, "too large"),
        (np.int8, -1, "negative"),
        (np.int16, -300, "negative"),
        (np.int32, -1, "negative"),
        (np.int32, -(2**31), "negative"),
    ],
)
@pytest.mark.parametrize("place", [(0, 0), (33, 50)])
def test_values_that_are_no_ids(tif: Path, recwarn, dtype, value, fault: str, place) -> None:
    ids = id_map(dtype)
    ids[place] = value
    tifffile.imwrite(tif, ids, photometric="minisblack", rowsperstrip=8, compression="zlib")
    error = assert_refused(tif, fault, f"row {place[0]}, column {place[1]}", read=read_label_map)
    assert "whole ids" in error.expected
    assert not recwarn.list


def test_float32_ids_are_exact_up_to_2_to_the_24(tif: Path) -> None:
    ids = np.array([[2.0**24, 2.0**24 - 1]], np.float32)
    tifffile.imwrite(tif, ids, photometric="minisblack")
    assert read_label_map(tif).tolist() == [[2**24, 2**24 - 1]]


def test_mask_of_one_channel_in_an_axis_of_its_own(tif: Path) -> None:
    tifffile.imwrite(tif, id_map(np.uint16)[:, :, None], photometric="minisblack")
    np.testing.assert_array_equal(read_label_map(tif), id_map())


def test_colors_of_a_mask_do_not_change_its_ids(tif: Path) -> None:
    ids = id_map(np.uint8)
    colors = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(tif, ids, photometric="palette", colormap=colors)
    np.testing.assert_array_equal(read_label_map(tif), ids)
    tifffile.imwrite(tif, ids, photometric="miniswhite")
    np.testing.assert_array_equal(read_label_map(tif), ids)


@pytest.mark.parametrize("options", [{}, {"ome": True}, {"imagej": True}, {"truncate": True}])
def test_masks_of_several_pages_are_refused(tif: Path, options) -> None:
    stack = np.stack([id_map(np.uint16)] * 3)
    tifffile.imwrite(tif, stack, photometric="minisblack", **options)
    assert_refused(tif, "3 pages", "one page", read=read_label_map)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_masks_of_several_channels_are_refused(tif: Path, channels: int, planar: str) -> None:
    image = color_image(channels)
    stored = image if planar == "contig" else image.transpose(2, 0, 1)
    photometric = "rgb" if channels > 2 else "minisblack"
    tifffile.imwrite(tif, stored, photometric=photometric, planarconfig=planar)
    assert_refused(tif, f"{channels} channels", "one channel", read=read_label_map)


def test_jpeg_and_complex_masks_are_refused(tif: Path) -> None:
    Image.fromarray(smooth_image()[:, :, 0]).save(tif, compression="jpeg")
    assert_refused(tif, "JPEG", "lossless", read=read_label_map)
    tifffile.imwrite(tif, np.zeros((4, 4), np.complex64))
    assert_refused(tif, "COMPLEX", read=read_label_map)
    assert_refused(tif, "COMPLEX")


def test_mask_of_another_size_is_refused(tif: Path) -> None:
    tifffile.imwrite(tif, id_map())
    size = (WIDTH, HEIGHT)
    assert_refused(tif, "37×53", "53×37", read=read_label_map, expected_size=size)


def test_label_map_needs_little_memory_beyond_itself(tif: Path) -> None:
    # Oracle: a float64 image would be 8 MB, the int32 result is 4 MB, a strip .25 MB.
    tifffile.imwrite(tif, np.ones((1000, 1000)), compression="lzw", rowsperstrip=32)
    read_label_map(tif)
    tracemalloc.start()
    read_label_map(tif)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 4_000_000 < peak < 5_500_000


# ------------------------------------------------------------------- unusable and hostile

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


# ---------------------------------------------------------------------- without imagecodecs

WITHOUT_IMAGECODECS = """
import sys, tracemalloc
sys.modules["imagecodecs"] = None
from cellseg_d2.data.tiff import read_image, read_label_map
from cellseg_d2.errors import CellDataError
plain, deflate, lzw, bomb = sys.argv[1:]
for path in plain, deflate:
    print(int(read_label_map(path).sum()), int(read_image(path).sum()))
for path in lzw, bomb:
    tracemalloc.start()
    try:
        read_image(path)
    except CellDataError as error:
        print(error, "| peak", tracemalloc.get_traced_memory()[1] < 5_000_000)
    tracemalloc.stop()
"""


def test_without_imagecodecs(tmp_path: Path, repository: Path) -> None:
    ids = id_map(np.uint8)
    paths = [tmp_path / f"{name}.tif" for name in ("plain", "deflate", "lzw", "bomb")]
    tifffile.imwrite(paths[0], ids)
    tifffile.imwrite(paths[1], ids, compression="zlib", predictor=True)
    tifffile.imwrite(paths[2], ids, compression="lzw")
    bomb = zlib.compress(bytes(50_000_000), 9)
    paths[3].write_bytes(build_tiff(4, 4, bomb, change={259: tag(259, 8, kind=3)}))
    command = [sys.executable, "-c", WITHOUT_IMAGECODECS, *map(str, paths)]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[:2] == [f"{ids.sum()} {3 * ids.astype(int).sum()}"] * 2
    assert str(paths[2]) in lines[2] and "pip install imagecodecs" in lines[2]
    assert str(paths[3]) in lines[3] and "unpacks to more than 16 bytes" in lines[3]
    assert "peak True" in lines[3]


# ----------------------------------------------------------------- truncation and mutation


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


# ------------------------------------------------------------------------------- real data


def test_layout_sample(real_data: Path) -> None:
    folder = real_data / "layout_sample"
    image = read_image(folder / "image.tif", "BGR")
    stored = tifffile.imread(folder / "image.tif")
    assert image.shape == (397, 482, 3) == (*read_size(folder / "image.tif"), 3)
    np.testing.assert_array_equal(image, stored[:, :, 2::-1])
    np.testing.assert_array_equal(read_image(folder / "image.tif"), stored[:, :, :3])
    masks = [read_label_map(folder / f"class{k}.tif", expected_size=(397, 482)) for k in (1, 2)]
    assert np.unique(masks[0]).tolist() == [0, 1, 2]
    assert np.unique(masks[1]).tolist() == [0, *range(3, 162)]
    np.testing.assert_array_equal(masks[1], tifffile.imread(folder / "class2.tif"))
    red, _, blue = image[(masks[0] > 0) | (masks[1] > 0)].mean(axis=0)
    assert blue > red + 20  # haematoxylin


def test_consep(real_data: Path) -> None:
    folders = sorted((real_data / "consep_train").iterdir())
    assert len(folders) == 27
    instances = 0
    for number, folder in enumerate(folders):
        image = read_image(folder / "image.tif")
        assert image.shape == (1000, 1000, 3)
        if number % 9 == 0:
            np.testing.assert_array_equal(image, tifffile.imread(folder / "image.tif"))
        for path in sorted(folder.glob("class?.tif")):
            label_map = read_label_map(path, expected_size=(1000, 1000))
            instances += np.count_nonzero(np.bincount(label_map.ravel())[1:])
    assert instances == 15_555
