"""Draws against `CellDatasetMapper` under a config, masks against images that encode their ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import tifffile
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform

from cellseg_d2.config import load_config
from cellseg_d2.data import CellDatasetMapper, load_cell_dicts
from cellseg_d2.data.augmentation.filters import GaussianBlurTransform, GaussianNoiseTransform
from cellseg_d2.data.augmentation.photometric import BrightnessContrastTransform, HueTransform
from cellseg_d2.data.augmentation.recipes import RECIPES
from cellseg_d2.data.augmentation.stain import HEDTransform
from cellseg_d2.data.augmentation.warp import Rot90, Warp
from cellseg_d2.visualization.overlay import OverlayStyle, cell_metadata
from cellseg_d2.visualization.recipe_sheet import draw_samples, recipe_sheet, transform_names

SIZE = (48, 64)


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, Any]]:
    """An image with cells of two classes, white on black; and one without any."""
    cells = np.zeros((2, *SIZE), np.uint16)
    cells[0, 5:20, 6:24], cells[0, 30:41, 40:60], cells[1, 25:45, 5:19] = 4, 900, 4
    for name, label_maps in (("cells", cells), ("empty", cells[:0])):
        folder = tmp_path / name
        folder.mkdir()
        image = np.repeat((label_maps.max(axis=0, initial=0) > 0)[..., None], 3, axis=2)
        tifffile.imwrite(folder / "image.tif", image.astype(np.uint8) * 255, photometric="rgb")
        for k, label_map in enumerate(label_maps, start=1):
            tifffile.imwrite(folder / f"class{k}.tif", label_map)
    return load_cell_dicts(tmp_path)


@pytest.mark.parametrize("recipe", RECIPES)
def test_draws_are_those_of_the_loader(records: list[dict[str, Any]], recipe: str) -> None:
    cfg = load_config()
    cfg.SEED, cfg.INPUT.FORMAT, cfg.INPUT.CELL.RECIPE = 7, "RGB", recipe
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.ENABLED = (0,), False
    mapper = CellDatasetMapper(cfg, True)
    for position, sample in enumerate(draw_samples(records[0], recipe, 4, seed=7)):
        mapped = mapper(records[0], position)
        assert np.array_equal(sample.image, mapped["image"].numpy().transpose(1, 2, 0))
        instances = mapped["instances"]
        boxes = [annotation["bbox"] for annotation in sample.annotations]
        assert boxes == instances.gt_boxes.tensor.tolist()
        classes = [annotation["category_id"] for annotation in sample.annotations]
        assert classes == instances.gt_classes.tolist()
        for annotation, mask in zip(sample.annotations, instances.gt_masks, strict=True):
            assert np.array_equal(mask_util.decode(annotation["segmentation"]), mask.numpy())


@pytest.mark.parametrize("recipe", ["dihedral", "report3", "cellseg"])
def test_masks_lie_on_the_cells(records: list[dict[str, Any]], recipe: str) -> None:
    for sample in draw_samples(records[0], recipe, 6):
        covered = np.zeros(sample.image.shape[:2], bool)
        for annotation in sample.annotations:
            covered |= mask_util.decode(annotation["segmentation"]).astype(bool)
        assert np.mean(covered == (sample.image.mean(axis=2) > 127)) > 0.97


def test_what_the_instance_rule_left_out_stays_out(tmp_path: Path, records: list) -> None:
    record = load_cell_dicts(tmp_path, min_area=230)[0]
    sample = next(draw_samples(record, "none", 1))
    assert [annotation["category_id"] for annotation in sample.annotations] == [0, 1]
    assert sample.names == []


def test_sheets_hold_the_original_and_every_draw(records: list[dict[str, Any]]) -> None:
    for record in (*records, {k: records[0][k] for k in ("file_name", "image_id")} | _size()):
        sheets = [
            recipe_sheet(record, "flip", cell_metadata(), OverlayStyle(), draws=draws)
            for draws in (1, 2, 3)
        ]
        assert sheets[0].shape[1] < sheets[1].shape[1] == sheets[2].shape[1]
        assert sheets[1].shape[0] < sheets[2].shape[0]
        assert all(sheet.dtype == np.uint8 for sheet in sheets)


def _size() -> dict[str, int]:
    return {"height": SIZE[0], "width": SIZE[1]}


def test_names_say_what_a_person_wants_to_know() -> None:
    turn = Warp([Rot90(1, [1])]).get_transform(np.zeros((4, 4, 3), np.uint8))
    transform = T.TransformList(
        [
            NoOpTransform(),
            turn,
            HueTransform(-0.001),
            GaussianNoiseTransform(3.14159, seed=99),
            T.TransformList([GaussianBlurTransform(5), GaussianBlurTransform(3, 0.5)]),
            BrightnessContrastTransform(1.1, -0.05),
            HEDTransform((1, 1.02, 0.98), (0.0, 0.01, -0.05)),
        ]
    )
    assert transform_names(transform) == [
        "Rot90 90°",
        "Hue 0.00",
        "GaussianNoise 3.14",
        "GaussianBlur 5",
        "GaussianBlur kernel 3 sigma 0.50",
        "BrightnessContrast contrast 1.10 brightness -0.05",
        "HED scale (1, 1.02, 0.98) shift (0.00, 0.01, -0.05)",
    ]
