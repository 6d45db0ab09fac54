"""Oracle: NumPy's own mirroring of the drawn field."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg_d2.data import read_image
from cellseg_d2.data.synthetic import make_image, slide, write_slide


@pytest.fixture
def small_field(monkeypatch) -> np.ndarray:
    monkeypatch.setattr(slide, "FIELD_SIDE", 120)
    return make_image(np.random.default_rng(4), (120, 120), 9)[0]


@pytest.mark.parametrize("compression", ["deflate", None])
def test_the_field_mirrored_without_a_seam(tmp_path: Path, small_field, compression) -> None:
    path = tmp_path / "slide.tif"
    write_slide(path, (430, 310), 4, compression=compression)
    expected = np.pad(small_field, [(0, 310), (0, 190), (0, 0)], mode="symmetric")
    np.testing.assert_array_equal(read_image(path), expected)
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff and file.pages.first.is_tiled and len(file.pages) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["slide.tif"]


def test_a_slide_smaller_than_the_field(tmp_path: Path) -> None:
    write_slide(tmp_path / "slide.tif", (33, 70), 5)
    expected, _ = make_image(np.random.default_rng(5), (33, 70), 1)
    np.testing.assert_array_equal(read_image(tmp_path / "slide.tif"), expected)


def test_windows_of_the_endless_field(small_field) -> None:
    expected = np.pad(small_field, [(0, 300), (0, 300), (0, 0)], mode="symmetric")
    window = slide.slide_window(small_field, 90, 230, 200, 61)
    np.testing.assert_array_equal(window, expected[90:290, 230:291])


def test_sizes_below_a_pixel_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        write_slide(tmp_path / "slide.tif", (0, 5))
    assert not list(tmp_path.iterdir())
