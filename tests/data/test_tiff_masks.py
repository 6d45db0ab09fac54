"""The reader of label maps against the arrays that were written."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg_d2.data.tiff import MAX_ID, read_label_map

from .tiff_files import HEIGHT, WIDTH, assert_refused, color_image, id_map, smooth_image

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
