"""A predictor's scores: those of the evaluation loop, and those of tiles and views."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset
from cellseg_d2.engine import CellTrainer, register_datasets
from cellseg_d2.inference import CellPredictor
from cellseg_d2.inference.evaluation import (
    evaluate_predictor,
    evaluate_with_predictor,
    needs_predictor,
)

from .models import save_weights, tiny_config


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    data = tmp_path / "data"
    write_dataset(data, SyntheticParameters(train=4, test=1, size=(80, 96), cells=(8, 12)))
    weights = save_weights(tmp_path / "tiny.pth", 0)
    cfg = tiny_config(
        *("DATASETS.CELL.ROOT", str(data), "OUTPUT_DIR", str(tmp_path / "run")),
        *("DATASETS.TEST", "('cells_val', 'cells_trainval')", "DATASETS.CELL.VAL_FRACTION", "0.5"),
        *("INPUT.CELL.CHANNEL_ORDER", "BGR", "MODEL.WEIGHTS", str(weights)),
        *("DATALOADER.NUM_WORKERS", "0", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01"),
    )
    register_datasets(cfg)
    yield cfg
    for name in ("cells_train", "cells_val", "cells_trainval", "cells_test"):
        DatasetCatalog.pop(name, None)


def test_without_tiles_and_views_the_scores_are_the_evaluation_loops(cfg: CfgNode) -> None:
    predictor = CellPredictor(cfg)
    assert not needs_predictor(cfg)
    found = evaluate_with_predictor(cfg, predictor)
    expected = CellTrainer.test(cfg, predictor.models[0].model)
    assert list(found) == list(expected) and "cells_val/segm" in found
    for task, scores in expected.items():
        assert found[task] == pytest.approx(scores, abs=1e-3, nan_ok=True)
    assert found["cells_val/bbox"]["AP"] > 0
    alone = evaluate_predictor(cfg, predictor, "cells_val")
    assert alone["segm"] == pytest.approx(found["cells_val/segm"], nan_ok=True)


@pytest.mark.parametrize(
    "options", [["TEST.TILE.SIZE", 64, "TEST.TILE.OVERLAP", 24], ["TEST.TTA.ENABLED", True]]
)
def test_tiles_and_views_are_what_is_scored(cfg: CfgNode, options: list) -> None:
    cfg.DATASETS.TEST = ("cells_val",)
    plain = evaluate_with_predictor(cfg, CellPredictor(cfg))
    cfg.merge_from_list(options)
    assert needs_predictor(cfg)
    found = evaluate_with_predictor(cfg, CellPredictor(cfg))
    assert set(found) == set(plain) == {"bbox", "segm", "panoptic"}
    assert found["bbox"] != pytest.approx(plain["bbox"], abs=1e-3, nan_ok=True)
