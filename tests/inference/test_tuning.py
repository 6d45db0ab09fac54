"""Thresholds: the sweep against the model itself, and choices whose answer is plain to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.structures import Boxes, Instances

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.data import load_cell_dicts
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset
from cellseg_d2.inference import CellPredictor
from cellseg_d2.inference.tuned_config import (
    loosen,
    swept_thresholds,
    tune_config,
    write_tuned_config,
)
from cellseg_d2.inference.tuning import KEYS, SWEPT, Grid, Thresholds, apply_thresholds, tune
from cellseg_d2.structures import RLEMasks

from .models import save_weights, tiny_config

GRID = Grid(
    nms=(0.3, 0.5), mask_nms=(0.2, 1.0), cap=(5, 20, 60), score=(0.01, 0.2), label_score=(0.2, 0.4)
)


@pytest.fixture(scope="module")
def dicts(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, SyntheticParameters(train=2, test=1, size=(96, 96), cells=(12, 16)))
    return load_cell_dicts(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return str(save_weights(tmp_path_factory.mktemp("weights") / "tiny.pth", 0))


def answer(item: dict, scores: list[float], kept: slice = slice(None)) -> Instances:
    """The image's own annotations as an answer, best score first."""
    annotations = item["annotations"][kept]
    size = (item["height"], item["width"])
    found = Instances(
        size,
        pred_boxes=Boxes(torch.tensor([a["bbox"] for a in annotations]).reshape(-1, 4).float()),
        scores=torch.tensor(scores[: len(annotations)]),
        pred_classes=torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64),
        pred_masks=RLEMasks([a["segmentation"] for a in annotations], size),
    )
    return found[found.scores.argsort(descending=True, stable=True)]


@pytest.mark.parametrize("soft", ["", "linear"])
def test_the_sweep_leaves_what_the_model_would_answer(weights: str, soft: str) -> None:
    cfg = tiny_config("MODEL.WEIGHTS", weights, "TEST.SOFT_NMS.METHOD", soft)
    image = np.random.default_rng(0).integers(0, 255, (96, 112, 3), np.uint8)
    loose = CellPredictor(loosen(cfg, GRID, SWEPT))(image)["instances"]
    lengths = set()
    for score, cap, mask_threshold in ((0.2, 60, 1.0), (0.01, 20, 0.2)):
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = score
        cfg.TEST.DETECTIONS_PER_IMAGE = cap
        cfg.TEST.MASK_NMS.THRESHOLD = mask_threshold
        expected = CellPredictor(cfg)(image)["instances"]
        swept = apply_thresholds(loose, score, cap, mask_threshold)
        assert swept.pred_masks.rles == expected.pred_masks.rles
        assert torch.equal(swept.scores, expected.scores)
        assert torch.equal(swept.pred_classes, expected.pred_classes)
        lengths.add(len(swept))
    assert len(lengths) == 2 and 0 not in lengths


def test_where_masks_count_in_a_score_the_cap_is_not_swept(weights: str) -> None:
    cfg = tiny_config("MODEL.WEIGHTS", weights, "TEST.RESCORE.MASK", 2.0)
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    swept = swept_thresholds(cfg)
    assert swept == ("mask_nms", "score")
    image = np.random.default_rng(0).integers(0, 255, (96, 112, 3), np.uint8)
    loose = CellPredictor(loosen(cfg, GRID, swept))(image)["instances"]
    lengths = set()
    for score, mask_threshold in ((0.1, 1.0), (0.01, 0.2)):
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = score
        cfg.TEST.MASK_NMS.THRESHOLD = mask_threshold
        expected = CellPredictor(cfg)(image)["instances"]
        thinned = apply_thresholds(loose, score, 20, mask_threshold)
        assert thinned.pred_masks.rles == expected.pred_masks.rles
        assert torch.equal(thinned.scores, expected.scores)
        lengths.add(len(thinned))
    assert len(lengths) == 2 and 0 not in lengths
    # Why: the best ten by the scores as they are now are not the ten that a cap of ten leaves.
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    capped = CellPredictor(cfg)(image)["instances"].pred_masks.rles
    swept_too = apply_thresholds(loose, 0.01, 10, 0.2).pred_masks.rles
    assert capped != swept_too


def test_choices(dicts: list[dict]) -> None:
    """At NMS .5 all cells are found, at .3 half; the second half scores .3, below are doubles."""

    def run_model(nms: float) -> list[Instances]:
        answers = []
        for item in dicts:
            count = len(item["annotations"])
            scores = [0.8] * (count // 2) + [0.3] * (count - count // 2)
            good = answer(item, scores, slice(None if nms == 0.5 else count // 2))
            bad = answer(item, [0.1] * count)
            answers.append(Instances.cat([good, bad]))
        return answers

    start = Thresholds(0.7, 0.9, 7, 0.3, 0.9)
    grid = Grid((0.3, 0.5), (0.5, 1.0), (5, 20, 60), (0.01, 0.2, 0.5), (0.2, 0.4, 0.9))
    chosen, trials = tune(run_model, dicts, [f"class{i}" for i in range(1, 5)], start, grid)
    # Doubles cost nothing in AP50, as every cell has its match before them. To drop them costs
    # nothing either, so that they go: by mask NMS, and then there is nothing left to cap. The cap
    # stays the highest, for images that hold more cells than these.
    assert chosen == Thresholds(nms=0.5, mask_nms=0.5, cap=60, score=0.01, label_score=0.2)
    assert [(t.name, t.value) for t in trials if t.chosen] == [
        (name, getattr(chosen, name)) for name in KEYS
    ]
    by = {(t.name, t.value): t for t in trials}
    count = sum(len(item["annotations"]) for item in dicts)
    assert by["nms", 0.5].result == pytest.approx(100) and by["nms", 0.3].result < 100
    assert by["nms", 0.5].cells == 2 * count and by["mask_nms", 0.5].cells == count
    assert by["cap", 5].result < 50 and by["cap", 5].cells == 10
    assert by["score", 0.2].result == pytest.approx(100) and by["score", 0.5].result < 80
    # Where cells of two classes overlap, a label map shows one of them.
    assert 90 < by["label_score", 0.2].result <= 100 and by["label_score", 0.4].result < 70
    assert by["label_score", 0.9].result == 0 == by["label_score", 0.9].cells
    assert by["label_score", 0.2].objective == "panoptic/PQ"

    kept, trials = tune(run_model, dicts, ["a", "b", "c", "d"], start, grid, swept=())
    assert kept == Thresholds(nms=0.5, mask_nms=0.9, cap=7, score=0.3, label_score=0.2)
    assert {t.name for t in trials} == {"nms", "label_score"}


def test_a_model_is_tuned_and_the_config_predicts(
    dicts: list[dict], weights: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(tiny_config().dump())
    options = ["MODEL.WEIGHTS", weights, "TEST.SOFT_NMS.METHOD", "linear"]
    cfg = load_config(run / "config.yaml", options)
    values, trials = tune_config(cfg, dicts, GRID)
    assert [t.name for t in trials] == [n for n in KEYS for _ in getattr(GRID, n)]
    assert values["MODEL.RPN.POST_NMS_TOPK_TEST"] == 100
    path = write_tuned_config(run, run / "config.yaml", cfg, options, values, "Tuned.")
    assert path == run.resolve() / "tuned.yaml"
    assert yaml.safe_load(path.read_text())["_BASE_"] == "config.yaml"
    tuned = load_config(path)
    assert tuned.MODEL.WEIGHTS == str(Path(weights).resolve())
    assert tuned.TEST.SOFT_NMS.METHOD == "linear"
    for name, key in KEYS.items():
        (trial,) = (t for t in trials if t.name == name and t.chosen)
        node = tuned
        for part in key.split("."):
            node = node[part]
        assert node == trial.value == values[key]
    assert (
        len(CellPredictor(tuned)(np.zeros((64, 64, 3), np.uint8))["instances"])
        <= values[KEYS["cap"]]
    )
    other = write_tuned_config(tmp_path / "a" / "b", run / "config.yaml", cfg, options, values, "")
    assert load_config(other).dump() == tuned.dump()


def test_a_gaussian_has_no_nms_threshold(dicts: list[dict], weights: str) -> None:
    cfg = tiny_config("MODEL.WEIGHTS", weights, "TEST.SOFT_NMS.METHOD", "gaussian")
    _, trials = tune_config(cfg, dicts[:1], GRID)
    assert [t.value for t in trials if t.name == "nms"] == [0.5]


def test_with_tiles_less_is_tuned(dicts: list[dict], weights: str) -> None:
    options = ["MODEL.WEIGHTS", weights, "TEST.TILE.SIZE", "64", "TEST.TILE.OVERLAP", "16"]
    cfg = tiny_config(*options)
    values, trials = tune_config(cfg, dicts[:1], GRID)
    assert {t.name for t in trials} == {"nms", "label_score"}
    assert values["TEST.DETECTIONS_PER_IMAGE"] == 100
    assert values["MODEL.ROI_HEADS.SCORE_THRESH_TEST"] == 0.05


def test_nothing_to_tune_on_is_refused(dicts: list[dict]) -> None:
    empty = [dict(item, annotations=[]) for item in dicts]
    with pytest.raises(ConfigError, match="no image to tune on has a cell"):
        tune_config(tiny_config(), empty, GRID)
    with pytest.raises(ConfigError, match="MASK_ON"):
        tune_config(tiny_config("MODEL.MASK_ON", "False"), dicts, GRID)
