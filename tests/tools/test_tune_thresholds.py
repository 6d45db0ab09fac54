"""The command line of ``tools/tune_thresholds.py``: its table, its file and its exit statuses."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

from cellseg_d2 import load_config
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset

TINY = [
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.DEVICE", "cpu"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.RPN.POST_NMS_TOPK_TEST", "50"),
    *("INPUT.CELL.CHANNEL_ORDER", "BGR", "TEST.DETECTIONS_PER_IMAGE", "20"),
    *("DATASETS.CELL.VAL_FRACTION", "0.5"),
]


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    path = repository / "tools" / "tune_thresholds.py"
    spec = importlib.util.spec_from_file_location("tune_thresholds", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def fresh_state():
    yield
    setup_logger.cache_clear()
    logging.getLogger("cellseg_d2").handlers.clear()
    for name in ("cells_train", "cells_val", "cells_trainval", "cells_test"):
        DatasetCatalog.pop(name, None)


@pytest.fixture(scope="module")
def run_folder(repository: Path, tmp_path_factory) -> Path:
    """The output folder of a training that stopped before it began."""
    data = tmp_path_factory.mktemp("synthetic") / "data"
    write_dataset(data, SyntheticParameters(train=4, test=1, size=(64, 80), cells=(6, 9)))
    folder = tmp_path_factory.mktemp("run")
    options = ["DATASETS.CELL.ROOT", str(data), "OUTPUT_DIR", str(folder), *TINY]
    cfg = load_config(repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml", options)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    return folder


def test_the_table_and_the_file(tool: ModuleType, run_folder: Path, capsys) -> None:
    status = tool.run(
        ["--config-file", str(run_folder / "config.yaml"), "--nms", "0.5", "--mask-nms", "1,0.5"]
        + ["--caps", "10,20", "--scores", "0.01,0.3", "--label-scores", "0.5"]
        + ["MODEL.WEIGHTS", str(run_folder / "model_final.pth")]
    )
    out = capsys.readouterr().out
    assert status == 0, out
    rows = [line.split() for line in out.splitlines() if line.startswith(("MODEL.", "TEST."))]
    assert [(row[0], float(row[1])) for row in rows] == [
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.5),
        ("TEST.MASK_NMS.THRESHOLD", 0.5),
        ("TEST.MASK_NMS.THRESHOLD", 1),
        ("TEST.DETECTIONS_PER_IMAGE", 10),
        ("TEST.DETECTIONS_PER_IMAGE", 20),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.01),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3),
        ("TEST.PANOPTIC.SCORE_THRESHOLD", 0.5),
    ]
    assert sum(row[-1] == "chosen" for row in rows) == 5
    tuned = run_folder / "tuned.yaml"
    assert out.rstrip().endswith(f"Wrote {tuned.resolve()}")
    assert tuned.read_text().startswith("# Thresholds tuned on 2 images of cells_val: segm/AP50 ")
    assert load_config(tuned).MODEL.WEIGHTS == str((run_folder / "model_final.pth").resolve())


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ([], 1, "add MODEL.WEIGHTS"),
        (["MODEL.WEIGHTS", "no.pth"], 1, "no.pth"),
        (["DATASETS.CELL.ROOT", "/no/such/folder"], 1, "/no/such/folder"),
        (["DATASETS.TEST", "()"], 2, "DATASETS.TEST"),
        (["MODEL.WEIGHT", "x"], 2, "MODEL.WEIGHT"),
    ],
)
def test_faults_are_one_line(tool, run_folder, options, status, message, capsys) -> None:
    assert tool.run(["--config-file", str(run_folder / "config.yaml"), *options]) == status
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_a_tuned_config_does_not_replace_itself(tool, run_folder, tmp_path, capsys) -> None:
    config = tmp_path / "tuned.yaml"
    config.write_text((run_folder / "config.yaml").read_text())
    before = config.read_text()
    assert tool.run(["--config-file", str(config), "--output", str(tmp_path)]) == 2
    assert "--output" in capsys.readouterr().err and config.read_text() == before


@pytest.mark.parametrize("options", [["--nms", "a"], ["--scores", "-1"], ["--caps", "1.5"], []])
def test_wrong_usage(tool: ModuleType, options: list[str], capsys) -> None:
    arguments = [] if not options else ["--config-file", "x.yaml", *options]
    with pytest.raises(SystemExit) as end:
        tool.run(arguments)
    assert end.value.code == 2
