"""Every recipe on dense, empty, tiny and large images: ids kept, image and labels aligned."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile
from detectron2.data import transforms as T
from scipy.ndimage import label

from cellseg_d2 import load_config
from cellseg_d2.data import CellDatasetMapper, load_cell_dicts
from cellseg_d2.data.augmentation import RECIPES, CellAugInput, build_recipe
from cellseg_d2.data.dataset_mapper import seeded_random
from cellseg_d2.data.loader import StreamSampler, build_stream_loader
from cellseg_d2.data.synthetic import make_label_map
from cellseg_d2.structures import encode_label_map

WARPS_ONLY = [name for name in RECIPES if name != "none"]


def draw(name: str, sample: CellAugInput, position: int) -> None:
    with seeded_random((3, position)):
        T.AugmentationList(build_recipe(name))(sample)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("size", "cells"), [((1, 1), 1), ((33, 35), 6), ((200, 160), 0), ((256, 300), 772)]
)
def test_only_ids_that_were_there(name: str, size: tuple[int, int], cells: int) -> None:
    labels = make_label_map(np.random.default_rng(0), size, cells)
    offset = np.int32(2**31 - 1 - max(cells, 1))  # the same cells with the largest ids there are
    spread = np.where(labels > 0, labels + offset, 0)
    image = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    for position in range(6):
        sample = CellAugInput(image.copy(), [labels.copy(), spread.copy()])
        draw(name, sample, position)
        assert sample.image.dtype == np.uint8 and sample.image.shape[2] == 3
        for before, after in zip((labels, spread), sample.label_maps, strict=True):
            assert after.dtype == np.int32 and after.shape == sample.image.shape[:2]
            assert np.isin(np.unique(after), np.append(np.unique(before), 0)).all()
        # Both label maps went the same way.
        moved = sample.label_maps[0]
        assert np.array_equal(np.where(moved > 0, moved + offset, 0), sample.label_maps[1])


@pytest.mark.parametrize("name", WARPS_ONLY)
def test_image_and_labels_stay_aligned(name: str) -> None:
    # Bright cells on black: after any recipe a cell's inside is bright and the background dark, but
    # for the pixels where interpolation, blur and nearest neighbour may differ, at the edges.
    labels = make_label_map(np.random.default_rng(2), (300, 300), 25)
    image = np.where(labels[:, :, None] > 0, 230, 10).astype(np.uint8).repeat(3, axis=2)
    for position in range(12):
        sample = CellAugInput(image.copy(), [labels.copy()])
        draw(name, sample, position)
        (moved,) = sample.label_maps
        bright = sample.image.mean(axis=2) > 120
        wrong = bright != (moved > 0)
        if moved.any() and not moved.all():
            edge = np.zeros_like(wrong)
            for axis, step in itertools.product((0, 1), (-3, -2, -1, 1, 2, 3)):
                edge |= np.roll(moved, step, axis) != moved
            assert not (wrong & ~edge).any(), f"draw {position}"


@pytest.mark.parametrize("name", RECIPES)
def test_boxes_are_tight_and_cells_leave_only_by_the_frame(name: str) -> None:
    labels = np.zeros((120, 120), np.int32)
    labels[50:70, 45:75] = 9  # in the middle, which no recipe moves out of the frame
    for position in range(8):
        sample = CellAugInput(np.zeros((120, 120, 3), np.uint8), [labels.copy()])
        draw(name, sample, position)
        found = encode_label_map(np.ascontiguousarray(sample.label_maps[0]))
        assert found.ids.tolist() == [9]
        y, x = np.where(sample.label_maps[0] == 9)
        assert found.boxes[0].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize(("name", "twice"), [("cellseg", False), ("report4", True)])
def test_the_project_s_own_recipe_shows_no_cell_twice(name: str, twice: bool) -> None:
    cell = np.pad(np.ones((8, 8), np.int32), 4)
    labels = np.kron(np.arange(1, 81, dtype=np.int32).reshape(8, 10), cell)
    several = 0
    for position in range(25):
        sample = CellAugInput(np.full((*labels.shape, 3), 128, np.uint8), [labels.copy()])
        draw(name, sample, position)
        (moved,) = sample.label_maps
        ids = np.unique(moved[moved > 0])
        # By 8 neighbours: the frame's slanting edge may leave of a corner pixels side by side.
        several += sum(label(moved == i, np.ones((3, 3)))[1] > 1 for i in ids)
    assert bool(several) == twice


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report1", "report4", "report5", "cellseg"])
def test_large_and_dense(name: str) -> None:
    labels = make_label_map(np.random.default_rng(0), (2500, 2000), 2300)
    sample = CellAugInput(np.zeros((2500, 2000, 3), np.uint8), [labels])
    draw(name, sample, 1)
    assert np.isin(np.unique(sample.label_maps[0]), np.arange(2301)).all()


@pytest.fixture
def dicts(tmp_path: Path) -> list[dict]:
    rng = np.random.default_rng(5)
    for k in range(3):
        folder = tmp_path / f"image{k}"
        folder.mkdir()
        tifffile.imwrite(folder / "image.tif", rng.integers(0, 255, (60, 80, 3)).astype(np.uint8))
        tifffile.imwrite(folder / "class1.tif", make_label_map(rng, (60, 80), 12))
    return load_cell_dicts(tmp_path)


@pytest.mark.parametrize("name", ["report1", "report4", "report5", "cellseg"])
def test_the_same_bytes_with_any_number_of_workers(name: str, dicts: list[dict]) -> None:
    cfg = load_config(options=["INPUT.CELL.RECIPE", name, "SEED", 4, "MODEL.DEVICE", "cpu"])
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)

    def samples(workers: int) -> list[bytes]:
        mapper = CellDatasetMapper(cfg, is_train=True)
        loader = build_stream_loader(dicts, mapper, StreamSampler(3, 2, seed=1), workers)
        batches = itertools.islice(loader, 6)
        return [
            s["image"].numpy().tobytes() + s["instances"].gt_masks.label_maps.numpy().tobytes()
            for batch in batches
            for s in batch
        ]

    alone = samples(0)
    assert samples(1) == samples(4) == alone
    assert len(set(alone)) == len(alone), "two samples drew the same"
