"""Files are stored as the released ones are."""

from __future__ import annotations

import json

import numpy as np
import tifffile

from cellseg_d2.data import read_image, read_label_map
from cellseg_d2.data.synthetic.files import write_image, write_json, write_label_map

RNG = np.random.default_rng(0)


def test_image(tmp_path):
    path = tmp_path / "image.tif"
    image = RNG.integers(0, 256, (11, 7, 3), dtype=np.uint8)
    write_image(path, image)
    with tifffile.TiffFile(path) as file:
        (page,) = file.pages
        assert page.dtype == np.uint8 and page.shape == (11, 7, 4)
        assert page.compression == tifffile.COMPRESSION.LZW
        assert page.predictor == tifffile.PREDICTOR.HORIZONTAL
        assert page.rowsperstrip == 4 and len(page.dataoffsets) == 3
        assert page.photometric == tifffile.PHOTOMETRIC.RGB
        assert page.extrasamples == (tifffile.EXTRASAMPLE.UNASSALPHA,)
        stored = page.asarray()
    np.testing.assert_array_equal(stored[..., 2::-1], image)
    assert (stored[..., 3] == 255).all()
    np.testing.assert_array_equal(read_image(path, "BGR"), image)


def test_label_map(tmp_path):
    path = tmp_path / "class1.tif"
    label_map = RNG.integers(0, 2**31 - 1, (11, 7), dtype=np.int32)
    write_label_map(path, label_map)
    with tifffile.TiffFile(path) as file:
        (page,) = file.pages
        assert page.dtype == np.float64 and page.shape == (11, 7)
        assert page.compression == tifffile.COMPRESSION.NONE
        assert page.rowsperstrip == 2 and len(page.dataoffsets) == 6
        assert page.photometric == tifffile.PHOTOMETRIC.MINISBLACK
        np.testing.assert_array_equal(page.asarray(), label_map)
    np.testing.assert_array_equal(read_label_map(path), label_map)


def test_json(tmp_path):
    partial = tmp_path / "partial"
    partial.mkdir()
    write_json(partial, tmp_path / "a.json", {"b": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, 2]}
    assert not list(partial.iterdir())
