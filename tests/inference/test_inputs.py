"""What files and folders stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellseg_d2 import CellDataError
from cellseg_d2.inference import find_images


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_folder_of_tiffs_a_training_set_an_image_folder_and_a_file(tmp_path: Path) -> None:
    flat = [tmp_path / "flat" / name for name in ("a.tif", "b.TIFF")]
    nested = [tmp_path / "train" / name / "image.tif" for name in ("x", "y")]
    touch(*flat, *nested, tmp_path / "flat" / "notes.txt", nested[0].with_name("class1.tif"))
    touch(tmp_path / "train" / ".z.part" / "image.tif")
    assert find_images([tmp_path / "flat"]) == flat
    assert find_images([tmp_path / "train"]) == nested
    assert find_images([nested[1].parent]) == [nested[1]]
    assert find_images([flat[1], tmp_path / "train"]) == [flat[1], *nested]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_nothing_there_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CellDataError, match=name):
        find_images([tmp_path / name])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["x/image.tif", "loose.tif", "more.TIFF"], "loose.tif, more.TIFF beside folders"),
        (["x/image.tif", "y/scan.tif"], "y: found scan.tif without image.tif"),
        (["a.tif", "more/b.tif"], r"TIFFs beside folders of TIFFs \(more\)"),
        (["image.tif", "image2.tif"], "image.tif, and image2.tif, no class files"),
    ],
)
def test_no_image_is_left_out_without_a_word(
    tmp_path: Path, files: list[str], message: str
) -> None:
    touch(*(tmp_path / name for name in files))
    with pytest.raises(CellDataError, match=message):
        find_images([tmp_path])


def test_what_is_no_image_does_not_disturb(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "image.tif", tmp_path / "x" / "class1.tif", tmp_path / "x" / "old.tif")
    touch(tmp_path / "notes.txt", tmp_path / "empty" / "notes.txt", tmp_path / ".hidden.tif")
    assert find_images([tmp_path]) == find_images([tmp_path / "x"]) == [tmp_path / "x/image.tif"]
