"""Oracle: what loads as ground truth is what flattening the predictions gives, pixel by pixel."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import tifffile
from detectron2.structures import Instances

from cellseg_d2.data import load_cell_dicts, read_image, read_label_map
from cellseg_d2.export import label_tiff
from cellseg_d2.export.label_tiff import open_label_folder
from cellseg_d2.export.pixel_size import read_pixel_size
from cellseg_d2.structures import flatten

from .answers import discs, make_instances

SIZE = (60, 70)


def save_image(folder: Path, size: tuple[int, int] = SIZE, **options) -> Path:
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(5).integers(0, 256, (*size, 3), dtype=np.uint8)
    tifffile.imwrite(folder / "tile.tif", pixels, photometric="rgb", **options)
    return folder / "tile.tif"


def write(root: Path, image: Path, *parts: Instances, pixel_size: float | None = None) -> Path:
    folder = root / image.stem
    with open_label_folder(folder, image, parts[0].image_size, pixel_size) as writer:
        first_id = 1
        for part in parts:
            writer.add(part, first_id)
            first_id += len(part)
    return folder


def flattened(instances: Instances) -> dict[int, tuple[int, np.ndarray]]:
    """{cell id: (class, mask)} of the cells that are seen, by painting the best last."""
    painted = np.zeros(instances.image_size, int)
    for index in np.argsort(instances.scores.numpy(), kind="stable"):
        (mask,) = instances[int(index)].pred_masks
        painted[mask.numpy()] = index + 1
    classes = instances.pred_classes.tolist()
    return {i: (classes[i - 1], painted == i) for i in np.unique(painted[painted > 0]).tolist()}


def assert_loads_as(root: Path, expected: dict[int, tuple[int, np.ndarray]]) -> None:
    (record,) = load_cell_dicts(root)
    loaded = [int(i) for ids in record["kept_ids"].values() for i in ids]
    assert sorted(loaded) == sorted(expected)
    for cell_id, annotation in zip(loaded, record["annotations"], strict=True):
        category, mask = expected[cell_id]
        assert annotation["category_id"] == category
        assert np.array_equal(mask_util.decode(annotation["segmentation"]) > 0, mask)
    assert set(record["label_file_names"]) == {category for category, _ in expected.values()}


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("on_disk", [False, True])
def test_predictions_load_as_ground_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiled: bool, on_disk: bool
) -> None:
    monkeypatch.setattr(label_tiff, "_LARGEST_IN_STRIPS", 16 if tiled else 2048)
    monkeypatch.setattr(label_tiff, "_TILE", 32)
    monkeypatch.setattr(label_tiff, "_STRIP_ROWS", 7)
    monkeypatch.setattr(label_tiff, "_PIXELS_IN_MEMORY", 0 if on_disk else 2**24)
    cells = discs(np.random.default_rng(2), 40, SIZE)
    image = save_image(tmp_path)
    folder = write(tmp_path / "labels", image, cells[:15], cells[15:])
    expected = flattened(cells)
    assert len(expected) < len(cells), "nothing is covered: the test is too easy"
    assert_loads_as(tmp_path / "labels", expected)
    assert {path.name for path in folder.iterdir()} == {
        *("image.tif", "class1.tif", "class2.tif", "class3.tif", "class4.tif")
    }
    with tifffile.TiffFile(folder / "class1.tif") as tiff:
        page = tiff.pages.first
        assert page.is_tiled == tiled and page.dtype == np.uint16 and not tiff.is_bigtiff
        assert len(page.dataoffsets) == (6 if tiled else 9)


def test_the_label_map_is_that_of_flattening(tmp_path: Path) -> None:
    cells = discs(np.random.default_rng(4), 30, SIZE)
    folder = write(tmp_path, save_image(tmp_path / "images"), cells)
    flat = flatten.flatten_masks(cells.pred_masks.rles, cells.scores.tolist(), SIZE)
    merged = sum(read_label_map(path) for path in folder.glob("class?.tif"))
    table = np.concatenate([[0], flat.kept + 1])
    assert np.array_equal(merged, table[flat.label_map])


def test_a_class_without_cells_has_no_file(tmp_path: Path) -> None:
    image, mask = save_image(tmp_path / "images"), np.ones(SIZE)
    folder = write(tmp_path / "a", image, make_instances([mask, mask], [0.9, 0.8], [2, 1], SIZE))
    assert {path.name for path in folder.iterdir()} == {"image.tif", "class3.tif"}
    folder = write(tmp_path / "b", image, make_instances([], [], [], SIZE))
    assert {path.name for path in folder.iterdir()} == {"image.tif"}
    assert_loads_as(tmp_path / "b", {})


@pytest.mark.parametrize("linked", [True, False])
def test_the_image_is_beside_its_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if not linked:
        monkeypatch.setattr(os, "link", no_links)
    image = save_image(tmp_path / "images")
    alias = tmp_path / "alias.tif"
    alias.symlink_to(image)
    folder = write(tmp_path / "labels", alias, discs(np.random.default_rng(0), 2, SIZE))
    assert np.array_equal(read_image(folder / "image.tif"), read_image(image))
    assert not (folder / "image.tif").is_symlink()
    assert (folder / "image.tif").samefile(image) == linked


def test_a_former_folder_is_replaced(tmp_path: Path) -> None:
    image, mask = save_image(tmp_path / "images"), np.ones(SIZE)
    root = tmp_path / "labels"
    (root / ".tile.part").mkdir(parents=True)  # of a run that was killed
    (root / ".tile.part" / "class4.tif").touch()
    write(root, image, make_instances([mask], [0.9], [0], SIZE))
    folder = write(root, image, make_instances([mask], [0.9], [1], SIZE))
    assert [path.name for path in root.iterdir()] == ["tile"]
    assert {path.name for path in folder.iterdir()} == {"image.tif", "class2.tif"}


def test_a_failure_on_the_way_leaves_the_former_folder(tmp_path: Path) -> None:
    image, cells = save_image(tmp_path / "images"), discs(np.random.default_rng(0), 5, SIZE)
    folder = write(tmp_path / "labels", image, cells)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RuntimeError), open_label_folder(folder, image, SIZE) as writer:
        writer.add(cells[:2], 1)
        raise RuntimeError("the model failed")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list((tmp_path / "labels").iterdir()) == [folder]


def test_many_cells_need_wider_ids(tmp_path: Path) -> None:
    mask = np.ones(SIZE)
    image = save_image(tmp_path / "images")
    with open_label_folder(tmp_path / "labels" / "tile", image, SIZE) as writer:
        writer.add(make_instances([mask], [0.9], [0], SIZE), 70_000)
    path = tmp_path / "labels" / "tile" / "class1.tif"
    assert tifffile.imread(path).dtype == np.int32
    assert np.unique(read_label_map(path)).tolist() == [70_000]


def test_large_files_are_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_tiff, "_CLASSIC_BYTES", 1000)
    cells = discs(np.random.default_rng(2), 10, SIZE)
    folder = write(tmp_path / "labels", save_image(tmp_path / "images"), cells)
    with tifffile.TiffFile(next(folder.glob("class?.tif"))) as tiff:
        assert tiff.is_bigtiff
    assert_loads_as(tmp_path / "labels", flattened(cells))


def test_the_size_of_pixels_is_kept(tmp_path: Path) -> None:
    resolution = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    image = save_image(tmp_path / "images", **resolution)
    cells = discs(np.random.default_rng(2), 10, SIZE)
    folder = write(tmp_path / "labels", image, cells, pixel_size=read_pixel_size(image))
    sizes = [read_pixel_size(path) for path in folder.iterdir()]
    assert len(sizes) > 1 and sizes == pytest.approx([0.25] * len(sizes))
