"""Oracles: the answer itself; the files, each read by what it is for, agree on every cell."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.structures import Instances
from PIL import Image

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.data import read_image, read_label_map
from cellseg_d2.export.image_outputs import ImageOutputs, OutputOptions
from cellseg_d2.export.parts import Parts
from cellseg_d2.export.submission import instances_to_entries
from cellseg_d2.structures.flatten import flatten_masks
from cellseg_d2.visualization.overlay import draw_predictions

from .answers import DiscPredictor, make_instances, save_images

ALL = OutputOptions(labels=True, geojson=True, csv=True, overlay=True, score_threshold=0.5)


def outputs_of(
    folder: Path, options: OutputOptions = ALL, overrides: tuple[str, ...] = ()
) -> tuple[ImageOutputs, Parts]:
    parts = Parts(folder, "run")
    cfg = load_config(None, ("MODEL.MASK_ON", "True", *overrides))
    return ImageOutputs(folder, cfg, options, parts), parts


def answer(item: dict) -> Instances:
    return Instances.cat(list(DiscPredictor().stream(item["file_name"])))


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_all_files_tell_of_the_same_cells(tmp_path: Path) -> None:
    (item,) = save_images(tmp_path / "images", 1)
    outputs, parts = outputs_of(tmp_path)
    assert not outputs.are_done(item)
    outputs.write(item, DiscPredictor().stream(item["file_name"]))
    assert outputs.are_done(item)

    everything = answer(item)
    assert list(parts.entries(item)) == instances_to_entries(everything, item["image_id"])
    shown = everything[everything.scores >= 0.5]
    assert 0 < len(shown) < len(everything)

    features = json.loads((tmp_path / "geojson" / "tile_0000.geojson").read_text())["features"]
    rows = read_table(tmp_path / "measurements" / "tile_0000.csv")
    numbers = list(range(1, len(shown) + 1))
    assert [feature["id"] for feature in features] == numbers
    assert [int(row["id"]) for row in rows] == numbers
    names = [f"class{category + 1}" for category in shown.pred_classes.tolist()]
    assert [feature["properties"]["classification"]["name"] for feature in features] == names
    assert [row["class"] for row in rows] == names
    assert [float(row["area_px2"]) for row in rows] == shown.pred_masks.area().tolist()

    flat = flatten_masks(shown.pred_masks.rles, shown.scores.tolist(), shown.image_size)
    folder = tmp_path / "labels" / "tile_0000"
    for category in range(4):
        ids = flat.kept[shown.pred_classes.numpy()[flat.kept] == category] + 1
        path = folder / f"class{category + 1}.tif"
        assert path.exists() == (len(ids) > 0)
        if len(ids):
            assert np.setdiff1d(np.unique(read_label_map(path)), [0]).tolist() == ids.tolist()
    drawn = draw_predictions(read_image(item["file_name"]), shown)
    with Image.open(tmp_path / "overlays" / "tile_0000.png") as picture:
        assert np.array_equal(np.asarray(picture), drawn)


def test_a_model_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MASK_ON"):
        outputs_of(tmp_path, overrides=("MODEL.MASK_ON", "False"))


def test_only_what_is_asked_for_is_written(tmp_path: Path) -> None:
    (item,) = save_images(tmp_path / "images", 1)
    outputs, _ = outputs_of(tmp_path / "out", OutputOptions(geojson=True))
    outputs.write(item, DiscPredictor().stream(item["file_name"]))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["geojson", "parts"]


def test_an_image_without_cells_has_all_files(tmp_path: Path) -> None:
    (item,) = save_images(tmp_path / "images", 1)
    outputs, parts = outputs_of(tmp_path)
    for nothing in ([], [make_instances([], [], [], (40, 50))]):
        outputs.write(item, nothing)
        assert outputs.are_done(item) and list(parts.entries(item)) == []
        assert read_table(tmp_path / "measurements" / "tile_0000.csv") == []
        assert {p.name for p in (tmp_path / "labels" / "tile_0000").iterdir()} == {"image.tif"}


def test_an_answer_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    (item,) = save_images(tmp_path / "images", 1)

    def broken() -> Iterator[Instances]:
        yield answer(item)
        raise RuntimeError("the model failed")

    outputs, _ = outputs_of(tmp_path / "out")
    with pytest.raises(RuntimeError, match="the model failed"):
        outputs.write(item, broken())
    assert not outputs.are_done(item)
    assert [path for path in (tmp_path / "out").rglob("*") if not path.is_dir()] == []


@pytest.mark.parametrize("lost", ["labels", "geojson", "measurements", "overlays"])
def test_a_file_that_was_removed_is_missing(tmp_path: Path, lost: str) -> None:
    (item,) = save_images(tmp_path / "images", 1)
    outputs, _ = outputs_of(tmp_path)
    outputs.write(item, DiscPredictor().stream(item["file_name"]))
    (tmp_path / lost).rename(tmp_path / "elsewhere")
    assert not outputs.are_done(item)


def test_a_slide_is_read_in_windows_and_not_drawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (item,) = save_images(tmp_path / "images", 1)
    cells = [answer(item)]
    whole, _ = outputs_of(tmp_path / "whole")
    whole.write(item, cells)
    # One pixel less than the image has: a slide, as far as this run is concerned.
    slide, _ = outputs_of(tmp_path / "slide", overrides=("INPUT.CELL.MAX_PIXELS", "1999"))
    with caplog.at_level(logging.WARNING):
        slide.write(item, cells)
    assert "tile_0000.tif: no overlay" in caplog.text
    assert slide.are_done(item) and not (tmp_path / "slide" / "overlays").exists()
    for name in ("measurements/tile_0000.csv", "geojson/tile_0000.geojson"):
        assert (tmp_path / "slide" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
