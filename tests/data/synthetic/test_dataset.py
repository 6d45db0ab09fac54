"""A data set on disk: the released layout, the same bytes each time, and no half-written image."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg_d2.data.synthetic import SyntheticParameters, dataset, write_dataset
from cellseg_d2.errors import CellDataError

SMALL = SyntheticParameters(
    train=5, test=2, size=(70, 110), cells=(4, 12), seed=3, empty=1, test_labels=True
)


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "set"
    assert write_dataset(root, SMALL) == 7
    return root


def test_layout(data_set):
    assert {path.name for path in data_set.iterdir()} == {
        "synthetic.json",
        "test_ground_truth",
        "test_image_name_to_ids.json",
        "test_release",
        "train",
    }
    folders = sorted((data_set / "train").iterdir())
    assert len(folders) == 5
    for folder in folders:
        assert str(uuid.UUID(folder.name)) == folder.name and uuid.UUID(folder.name).version == 4
        assert (folder / "image.tif").is_file()
        names = {path.name for path in folder.iterdir()} - {"image.tif"}
        assert names <= {f"class{k}.tif" for k in (1, 2, 3, 4)}


def test_every_file_is_stored_as_released(data_set):
    for path in data_set.rglob("*.tif"):
        with tifffile.TiffFile(path) as file:
            (page,) = file.pages
            if path.name.startswith("class"):
                assert page.compression == tifffile.COMPRESSION.NONE
                assert page.dtype == np.float64 and page.ndim == 2
                assert page.asarray().any()
            else:
                assert page.compression == tifffile.COMPRESSION.LZW
                assert page.dtype == np.uint8 and page.shape[2] == 4


def test_ids_in_files_run_on(data_set):
    for folder in (data_set / "train").iterdir():
        ids = [np.unique(tifffile.imread(path))[1:] for path in sorted(folder.glob("class?.tif"))]
        joined = np.concatenate(ids) if ids else np.empty(0)
        np.testing.assert_array_equal(joined, np.arange(1, len(joined) + 1))


def test_files_hold_the_drawn_image_with_red_and_blue_swapped(tmp_path, monkeypatch):
    drawn = []
    draw = dataset.make_image

    def spy(*args, **kwargs):
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(dataset, "make_image", spy)
    write_dataset(tmp_path, replace(SMALL, train=1, test=0, empty=0))
    image, label_maps = drawn[0]
    (folder,) = (tmp_path / "train").iterdir()
    np.testing.assert_array_equal(tifffile.imread(folder / "image.tif")[..., 2::-1], image)
    for number, label_map in enumerate(label_maps, 1):
        path = folder / f"class{number}.tif"
        assert path.exists() == label_map.any()
        if path.exists():
            np.testing.assert_array_equal(tifffile.imread(path), label_map)


def test_an_empty_image_has_no_class_file(data_set):
    bare = [f for f in (data_set / "train").iterdir() if not list(f.glob("class*.tif"))]
    assert len(bare) == 1


def test_absent_classes_have_no_file(tmp_path):
    write_dataset(tmp_path, replace(SMALL, train=3, test=0, empty=0, class_weights=(1, 0, 0, 0)))
    names = {path.name for path in (tmp_path / "train").rglob("class*.tif")}
    assert names == {"class1.tif"}
    assert not (tmp_path / "test_image_name_to_ids.json").exists()


def test_id_map(data_set):
    entries = json.loads((data_set / "test_image_name_to_ids.json").read_text())
    assert [entry["id"] for entry in entries] == [1, 2]
    assert {e["file_name"] for e in entries} == {
        p.name for p in (data_set / "test_release").iterdir()
    }
    for entry in entries:
        assert sorted(entry) == ["file_name", "height", "id", "width"]
        shape = tifffile.imread(data_set / "test_release" / entry["file_name"]).shape
        assert shape == (entry["height"], entry["width"], 4)
        labels = data_set / "test_ground_truth" / Path(entry["file_name"]).stem
        for path in labels.iterdir():
            assert tifffile.imread(path).shape == shape[:2]


def test_sizes_lie_in_the_range_and_vary(data_set):
    shapes = [tifffile.imread(path).shape[:2] for path in data_set.rglob("image.tif")]
    sides = np.array(shapes).ravel()
    assert sides.min() >= 70 and sides.max() <= 110 and len(set(sides)) > 2


def test_same_parameters_same_bytes(data_set, tmp_path):
    write_dataset(tmp_path, SMALL)
    assert contents(tmp_path) == contents(data_set)


def test_more_images_change_none_before(data_set, tmp_path):
    write_dataset(tmp_path, replace(SMALL, train=7, test=3))
    before, after = contents(data_set), contents(tmp_path)
    for name in ("synthetic.json", "test_image_name_to_ids.json"):
        before.pop(name)
    assert before.items() <= after.items()
    assert len(after) > len(before)


def test_another_seed_gives_other_names(data_set, tmp_path):
    write_dataset(tmp_path, replace(SMALL, seed=4))
    names = {path.name for path in (tmp_path / "train").iterdir()}
    assert names.isdisjoint(path.name for path in (data_set / "train").iterdir())


def test_uuids_are_stable(tmp_path):
    """A name written down once: it depends on the seed, the split and the index alone."""
    write_dataset(tmp_path, replace(SMALL, train=1, test=0, empty=1, seed=0))
    (folder,) = (tmp_path / "train").iterdir()
    assert folder.name == "5f82c2d9-cfeb-4fa3-a1d7-d982f8bd1045"


def test_writing_again_does_nothing(data_set):
    before = {path: path.stat().st_mtime_ns for path in data_set.rglob("*.tif")}
    assert write_dataset(data_set, SMALL) == 0
    assert {path: path.stat().st_mtime_ns for path in data_set.rglob("*.tif")} == before


def test_an_interrupted_run_is_completed(data_set, tmp_path, monkeypatch):
    calls = 0
    write_image = dataset.write_image

    def interrupted(path, image):
        nonlocal calls
        calls += 1
        if calls == 4:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        write_image(path, image)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "write_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_dataset(tmp_path, SMALL)
    assert len(list((tmp_path / "train").iterdir())) == 3  # no half image under its name
    assert write_dataset(tmp_path, SMALL) == 4
    assert contents(tmp_path) == contents(data_set)
    assert not (tmp_path / ".partial").exists()


def test_refuses_other_parameters(data_set):
    before = contents(data_set)
    with pytest.raises(CellDataError, match="seed 3.*seed 9.*another output folder"):
        write_dataset(data_set, replace(SMALL, seed=9))
    assert contents(data_set) == before


def test_refuses_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CellDataError, match="an empty folder"):
        write_dataset(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_refuses_damaged_parameters(tmp_path, text):
    (tmp_path / "synthetic.json").write_text(text)
    with pytest.raises(CellDataError, match="damaged"):
        write_dataset(tmp_path, SMALL)


def test_refuses_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(CellDataError, match="a file"):
        write_dataset(path, SMALL)


@pytest.mark.parametrize(
    "values",
    [
        {"train": -1},
        {"seed": -1},
        {"empty": 6},
        {"size": (10, 5)},
        {"cells": (3, 2)},
        {"size": (0, 5)},
        {"cells": (-1, 2)},
    ],
)
def test_parameters_out_of_range(values):
    with pytest.raises(ValueError):
        replace(SMALL, **values)
