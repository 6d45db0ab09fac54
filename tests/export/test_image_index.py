"""Oracle: folders made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg_d2.errors import CellDataError
from cellseg_d2.export.image_index import IndexedImage, index_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name, shape in (("b", (10, 20)), ("a", (30, 40))):
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", np.zeros((*shape, 3), np.uint8))
    return tmp_path / "images"


def test_ids_count_from_one_in_sorted_order(folder: Path) -> None:
    images, faults = index_images(None, folder)
    assert not faults
    assert images == {
        1: IndexedImage(1, "a", (30, 40), folder / "a.tif"),
        2: IndexedImage(2, "b", (10, 20), folder / "b.tif"),
    }


def test_the_id_map_names_ids_and_sizes(tmp_path: Path, folder: Path) -> None:
    id_map = tmp_path / "ids.json"
    entries = [
        {"file_name": "b.tif", "id": 7, "height": 10, "width": 20},
        {"file_name": "missing.tif", "id": 8, "height": 5, "width": 6},
    ]
    id_map.write_text(json.dumps(entries))
    expected = {
        7: IndexedImage(7, "b", (10, 20), folder / "b.tif"),
        8: IndexedImage(8, "missing", (5, 6), None),
    }
    assert index_images(id_map, folder) == (expected, [])


def test_a_folder_of_other_images_is_an_error(tmp_path: Path, folder: Path) -> None:
    id_map = tmp_path / "ids.json"
    id_map.write_text(json.dumps([{"file_name": "c.tif", "id": 7, "height": 10, "width": 20}]))
    with pytest.raises(CellDataError, match="none of the 1 images that .*ids.json names"):
        index_images(id_map, folder)


def test_an_unreadable_image_keeps_its_id_and_is_a_fault(folder: Path) -> None:
    (folder / "a.tif").write_bytes(b"no tiff")
    images, (fault,) = index_images(None, folder)
    assert fault.path == str(folder / "a.tif")
    assert images[1].size is None and images[2].size == (10, 20)


def test_nothing_is_known_without_either() -> None:
    assert index_images(None, None) == ({}, [])


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CellDataError):
        index_images(None, tmp_path)
