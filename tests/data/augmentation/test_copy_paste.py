"""Pasted cells: masks to the pixel, cover counted anew from the label maps, blending by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile
from detectron2.data import DatasetCatalog

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.data import CellDatasetMapper, load_cell_dicts
from cellseg_d2.data.augmentation import CellAugInput
from cellseg_d2.data.augmentation.cell_bank import BankCell, CellBank
from cellseg_d2.data.augmentation.copy_paste import (
    CopyPaste,
    PastedCell,
    PasteTransform,
    class_indices,
    edge_alpha,
)
from cellseg_d2.data.dataset_mapper import build_instances, seeded_random
from cellseg_d2.data.loader import StreamSampler, build_stream_loader
from cellseg_d2.data.synthetic import make_label_map

RARE = 250
"""The pixels of pasted cells; the ground is darker."""


def disc(radius: int) -> BankCell:
    side = 2 * radius + 3
    yy, xx = np.mgrid[:side, :side] - side // 2
    mask = yy**2 + xx**2 <= radius**2
    mask[: side // 2] &= xx[: side // 2] <= 0  # a quarter short, so that turns show
    return BankCell(np.full((side, side, 3), RARE, np.uint8), mask)


BANK = CellBank({0: [disc(4), disc(6)], 2: [disc(9)]})


def scene(seed: int, cells: int, size: tuple[int, int] = (120, 150)) -> CellAugInput:
    rng = np.random.default_rng(seed)
    labels = make_label_map(rng, size, cells)
    split = [np.where(labels % 2 == k, labels, 0).astype(np.int32) for k in (0, 1)]
    image = rng.integers(0, 100, (*size, 3)).astype(np.uint8)
    kept = {c: np.unique(m[m > 0]) for c, m in zip((0, 1), split, strict=True)}
    return CellAugInput(image, split, [0, 1], kept)


def paste(sample: CellAugInput, seed: int, **settings) -> list[PastedCell]:
    with seeded_random((seed,)):
        transform = CopyPaste(BANK, **({"prob": 1.0, "max_cells": 6} | settings))(sample)
    return transform.cells if isinstance(transform, PasteTransform) else []


@pytest.mark.parametrize("cells", [0, 5, 60])
def test_masks_are_exact_and_the_rest_is_left_alone(cells: int) -> None:
    total = 0
    for seed in range(15):
        before, after = scene(seed, cells), scene(seed, cells)
        pasted = paste(after, seed)
        total += len(pasted)
        union = np.zeros(before.image.shape[:2], bool)
        near = union.copy()
        new_ids: dict[int, list[int]] = {0: [], 2: []}
        for item in pasted:
            assert not (union[item.window] & item.cell.mask).any(), "two pasted cells overlap"
            union[item.window] |= item.cell.mask
            near[item.window] |= edge_alpha(item.cell.mask) > 0
            layer = after.label_maps[after.categories.index(item.category)]
            (new_id,) = np.unique(layer[item.window][item.cell.mask])
            assert np.count_nonzero(layer == new_id) == item.cell.mask.sum()
            new_ids[item.category].append(new_id)
        for category, label_map in zip(after.categories, after.label_maps, strict=True):
            ids = new_ids.get(category, [])
            assert len(set(ids)) == len(ids)
            old = before.label_maps[category] if category < 2 else np.zeros_like(label_map)
            assert not np.isin(ids, old).any()
            assert np.array_equal(label_map[~union], old[~union])
            assert np.isin(label_map[union], [0, *ids]).all(), "something shows under a cell"
            kept = before.kept_ids.get(category, np.zeros(0, int))
            assert after.kept_ids[category].tolist() == [*kept, *ids]
        assert np.array_equal(after.image[~near], before.image[~near])
        assert (after.image[union] > 160).all()
    assert total > (40 if cells < 60 else 5)


@pytest.mark.parametrize("max_cover", [0.0, 0.1, 0.35, 1.0])
def test_no_cell_is_covered_by_more_than_the_share(max_cover: float) -> None:
    largest = 0.0
    for seed in range(25):
        before, after = scene(seed, 40), scene(seed, 40)
        paste(after, seed, max_cover=max_cover, max_cells=8)
        for old, new in zip(before.label_maps, after.label_maps[:2], strict=True):
            for i in np.unique(old[old > 0]):
                covered = 1 - np.count_nonzero(new[old == i] == i) / np.count_nonzero(old == i)
                assert covered <= max_cover + 1e-12
                largest = max(largest, covered)
    assert largest >= 0.8 * min(max_cover, 0.5), "the share is hardly used"


def test_a_share_is_reached_exactly() -> None:
    """29 of 100 pixels may go at 0.29, though 0.29 * 100 is 28.999… in floating point; 30 not."""
    cell = BankCell(np.zeros((7, 31, 3), np.uint8), np.pad(np.ones((5, 29), bool), 1))
    found = set()
    for seed in range(300):
        labels = np.zeros((7, 102), np.int32)
        labels[3, 1:101] = 1
        sample = CellAugInput(np.zeros((7, 102, 3), np.uint8), [labels], [0], {0: np.array([1])})
        with seeded_random((seed,)):
            CopyPaste(CellBank({1: [cell]}), 3, 0.29, 1.0)(sample)
        found.add(100 - np.count_nonzero(sample.label_maps[0]))
    assert max(found) == 29


def test_the_blend_by_hand() -> None:
    mask = np.zeros((7, 7), bool)
    mask[2:5, 2:5] = True
    alpha = edge_alpha(mask)
    expected = np.zeros((7, 7), np.uint8)
    expected[1:6, 2:5] = expected[2:5, 1:6] = 85  # a third outside
    expected[2:5, 2:5] = 170  # two thirds along the border
    expected[3, 3] = 255
    assert np.array_equal(alpha, expected)
    image = np.full((9, 10, 3), 30, np.uint8)
    cell = BankCell(np.full((7, 7, 3), 240, np.uint8), mask)
    place = PastedCell(0, (slice(1, 8), slice(2, 9)), cell)
    painted = PasteTransform([place]).apply_image(image)
    assert painted[4, 5].tolist() == [240] * 3
    assert painted[3, 4].tolist() == [170] * 3
    assert painted[2, 4].tolist() == [100] * 3
    assert painted[0, 0].tolist() == [30] * 3 and (image == 30).all()


def test_a_mask_up_to_its_windows_edge_has_a_blended_edge() -> None:
    assert edge_alpha(np.ones((3, 3), bool)).tolist() == [[170] * 3, [170, 255, 170], [170] * 3]
    assert edge_alpha(np.ones((1, 1), bool)).tolist() == [[170]]


def test_all_turns_and_classes_come_up() -> None:
    shapes, categories = set(), []
    for seed in range(80):
        for item in paste(scene(seed, 0), seed, max_cells=3):
            shapes.add((item.category, item.cell.mask.tobytes()))
            categories.append(item.category)
    # The quarter-short discs have one symmetry of their own: four of eight turns differ.
    assert len({m for c, m in shapes if c == 2}) == 4
    assert 0.35 < np.mean(np.array(categories) == 0) < 0.65


def test_probability_and_number() -> None:
    counts = [len(paste(scene(0, 0), seed, prob=0.5, max_cells=2)) for seed in range(200)]
    assert set(counts) == {0, 1, 2}
    assert 70 < counts.count(0) < 130


def test_seeds_repeat() -> None:
    def bytes_of(seed: int) -> bytes:
        sample = scene(3, 20)
        paste(sample, seed)
        return sample.image.tobytes() + b"".join(m.tobytes() for m in sample.label_maps)

    assert bytes_of(1) == bytes_of(1) != bytes_of(2)


@pytest.mark.parametrize("size", [(1, 1), (10, 200), (33, 35)])
def test_images_smaller_than_the_cells(size: tuple[int, int]) -> None:
    sample = CellAugInput(np.zeros((*size, 3), np.uint8), [], [], {})
    pasted = paste(sample, 1)
    assert bool(pasted) == (min(size) >= 11)
    assert len(sample.label_maps) == len({item.category for item in pasted})


def test_a_full_image_takes_nothing() -> None:
    labels = np.arange(1, 101, dtype=np.int32).repeat(9).reshape(10, 90).repeat(9, axis=0)
    kept = {1: np.unique(labels)}
    for seed in range(10):
        sample = CellAugInput(np.zeros((90, 90, 3), np.uint8), [labels], [1], kept)
        assert paste(sample, seed, max_cover=0.05) == []
        assert np.array_equal(sample.label_maps[0], labels)


def test_dense_images_get_their_cells() -> None:
    """Three quarters are cells, and for the largest of the bank there is no room in some."""
    placed = 0
    for seed in range(20):
        sample = scene(seed, 80, (150, 150))
        assert sum(np.count_nonzero(m) for m in sample.label_maps) > 0.6 * 150**2
        placed += len(paste(sample, seed, max_cells=1, max_cover=0.1))
    assert placed >= 14  # blind draws place 10


def test_an_empty_bank_changes_nothing() -> None:
    sample = scene(0, 5)
    before = sample.image.copy()
    CopyPaste(CellBank({}), prob=1.0)(sample)
    assert np.array_equal(sample.image, before)


# The config and the mapper.


def write_images(root: Path) -> None:
    """Image "a" has class 3, "b" only class 1, "c" nothing."""
    for name, layers in {"a": {1: 4, 3: 6}, "b": {1: 9}, "c": {}}.items():
        (root / name).mkdir()
        rng = np.random.default_rng(len(name))
        tifffile.imwrite(root / name / "image.tif", rng.integers(0, 99, (90, 110, 3), np.uint8))
        for number, cells in layers.items():
            labels = np.zeros((90, 110), np.uint16)
            for k in range(1, cells + 1):
                y, x = 20 * (k % 4) + 3 * number, 20 * (k // 4) + 5
                labels[y : y + 6, x : x + 4 + k % 3] = k
            tifffile.imwrite(root / name / f"class{number}.tif", labels)


@pytest.fixture
def dicts(tmp_path: Path):
    write_images(tmp_path)
    loaded = load_cell_dicts(tmp_path)
    DatasetCatalog.register("copy_paste_test", lambda: loaded)
    yield loaded
    DatasetCatalog.remove("copy_paste_test")


def mapper(*options: object) -> CellDatasetMapper:
    settings = ["DATASETS.TRAIN", ("copy_paste_test",), "INPUT.MIN_SIZE_TRAIN", (0,), "SEED", 3]
    return CellDatasetMapper(load_config(options=[*settings, *options]), is_train=True)


PASTE = ("INPUT.CELL.COPY_PASTE.CLASSES", ["class3"], "INPUT.CELL.COPY_PASTE.PROB", 1.0)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_mapped_images_hold_the_pasted_cells(dicts: list[dict], index: int) -> None:
    augment = mapper(*PASTE)
    plain = mapper()
    kept_before = {c: ids.tolist() for c, ids in dicts[index]["kept_ids"].items()}
    gained = set()
    for position in range(12):
        classes = augment(dicts[index], position)["instances"].gt_classes
        expected = plain(dicts[index], position)["instances"].gt_classes
        gained.add(int((classes == 2).sum() - (expected == 2).sum()))
        assert (classes == 0).sum() == (expected == 0).sum()
        assert (classes.diff() >= 0).all()
    assert max(gained) > 0 and min(gained) >= 0
    assert {c: ids.tolist() for c, ids in dicts[index]["kept_ids"].items()} == kept_before


def test_workers_paste_the_same(dicts: list[dict]) -> None:
    augment = mapper(*PASTE)

    def drawn(workers: int) -> list[bytes]:
        loader = build_stream_loader(dicts, augment, StreamSampler(3, 2, seed=1), workers)
        return [s["image"].numpy().tobytes() for b in itertools.islice(loader, 4) for s in b]

    assert drawn(2) == drawn(0)


def test_boxes_of_pasted_cells_are_tight() -> None:
    sample = scene(2, 10)
    paste(sample, 4)
    instances = build_instances(sample.label_maps, sample.categories, sample.kept_ids, (120, 150))
    assert len(instances) == sum(len(ids) for ids in sample.kept_ids.values())
    tight = instances.gt_masks.to_bit_masks().get_bounding_boxes().tensor
    assert (instances.gt_boxes.tensor == tight).all()


def test_nothing_is_read_where_it_is_off() -> None:
    load = load_config(options=["DATASETS.TRAIN", ("no_such_data_set",)])
    CellDatasetMapper(load, is_train=True)


def test_tests_paste_nothing(dicts: list[dict]) -> None:
    cfg = load_config(options=[*PASTE, "DATASETS.TRAIN", ("no_such_data_set",)])
    CellDatasetMapper(cfg, is_train=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CLASSES", ["class9"]),
        ("CLASSES", [4]),
        ("CLASSES", [-1]),
        ("MAX_CELLS", 0),
        ("MAX_COVER", 1.1),
        ("PROB", -0.5),
    ],
)
def test_settings_that_are_refused(dicts: list[dict], key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"COPY_PASTE.{key}"):
        mapper(*PASTE, f"INPUT.CELL.COPY_PASTE.{key}", value)


def test_classes_by_name_and_number() -> None:
    assert class_indices(["b", 0, "c"], ["a", "b", "c"]) == [1, 0, 2]
