"""The TIFF reader against the arrays that were written."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg_d2.data.tiff import read_image, read_label_map, read_size

from .tiff_files import (
    HEIGHT,
    WIDTH,
    assert_refused,
    build_tiff,
    color_image,
    id_map,
    smooth_image,
    tag,
)


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
