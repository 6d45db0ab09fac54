"""Depths and intensity ranges of images, against NumPy over the arrays that were written."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg_d2.data.tiff import read_image, read_label_map

from .tiff_files import assert_refused, build_tiff, color_image, tag


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
