"""The two scripts end to end, on a data set in the released layout, and their exit statuses."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.engine import default_argument_parser
from detectron2.utils.logger import setup_logger

import predict
import train_net
from cellseg_d2 import CellDataError
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset
from cellseg_d2.export.submission_check import check_submission

TINY = [
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
    *("INPUT.CROP.SIZE", "[64, 64]", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2"),
    *("DATALOADER.NUM_WORKERS", "0", "INPUT.CELL.CHANNEL_ORDER", "BGR"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "20"),
]


@pytest.fixture(autouse=True)
def fresh_loggers():
    """Let the scripts log to the stream that is in place now, not to an earlier test's."""
    yield
    setup_logger.cache_clear()
    for name in ("cellseg_d2", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write_dataset(folder, SyntheticParameters(train=4, test=2, size=(64, 80), cells=(4, 8)))
    return folder


@pytest.fixture(scope="module")
def run(data: Path, repository: Path, tmp_path_factory) -> Path:
    """The output folder of a short training."""
    output = tmp_path_factory.mktemp("run")
    config = repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml"
    options = ["DATASETS.CELL.ROOT", str(data), "OUTPUT_DIR", str(output), *TINY]
    assert train_net.run(["--config-file", str(config), *options]) == 0
    return output


THREE_APS = ("AP", "AP50", "AP75")


@pytest.mark.slow
def test_training_ends_with_the_table(run: Path, data: Path, capsys) -> None:
    weights = str(run / "model_final.pth")
    saved = (run / "config.yaml").read_bytes()
    status = train_net.run(
        ["--config-file", str(run / "config.yaml"), "--eval-only", "MODEL.WEIGHTS", weights]
    )
    assert status == 0
    assert (run / "config.yaml").read_bytes() == saved, "the evaluation changed the run's config"
    tail = capsys.readouterr().out.strip().split("\n\n")[-1]
    scores = dict(line.split(": ") for line in tail.splitlines())
    assert list(scores)[:6] == [f"{t} {key}" for t in ("bbox", "segm") for key in THREE_APS]
    assert "panoptic PQ" in scores
    last = json.loads((run / "metrics.json").read_text().splitlines()[-1])
    assert scores["segm AP50"] == f"{last['segm/AP50']:.1f}"


@pytest.mark.slow
def test_a_resume_that_is_refused_leaves_the_runs_config(run: Path, capsys) -> None:
    saved = (run / "config.yaml").read_bytes()
    other = ["--config-file", str(run / "config.yaml"), "--resume", "MODEL.FPN.OUT_CHANNELS", "32"]
    assert train_net.run(other) == 1
    assert "weights of another model" in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == saved


@pytest.mark.slow
def test_training_and_evaluation_leave_their_scores(run: Path, tmp_path: Path) -> None:
    weights = str(run / "model_final.pth")
    arguments = ["--config-file", str(run / "config.yaml"), "--eval-only"]
    assert train_net.run([*arguments, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path)]) == 0
    trained, evaluated = (json.loads((f / "scores.json").read_text()) for f in (run, tmp_path))
    assert trained == evaluated
    assert set(trained) == {"bbox", "segm", "panoptic"}
    last = json.loads((run / "metrics.json").read_text().splitlines()[-1])
    assert trained["segm"]["AP50"] == last["segm/AP50"]


@pytest.mark.slow
def test_an_evaluation_sees_what_the_predictor_would(run: Path, tmp_path: Path) -> None:
    """One tile as large as the images changes nothing; several views answer otherwise."""
    arguments = ["--config-file", str(run / "config.yaml"), "--eval-only", "OUTPUT_DIR"]
    found = {}
    for name, options in {
        "plain": [],
        "tile": ["TEST.TILE.SIZE", "4096"],
        "tta": ["TEST.TTA.ENABLED", "True"],
    }.items():
        folder = tmp_path / name
        weights = ["MODEL.WEIGHTS", str(run / "model_final.pth")]
        assert train_net.run([*arguments, str(folder), *weights, *options]) == 0
        scores = json.loads((folder / "scores.json").read_text())
        answers = folder / "evaluation" / "cells_val" / "coco_instances_results.json"
        found[name] = (json.loads(answers.read_text()), scores["segm"])
    assert found["tile"] == found["plain"] != found["tta"] and found["plain"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ("", [], "add MODEL.WEIGHTS"),
        ("no.pth", [], "no.pth: found no such file"),
        ("model_final.pth", ["MODEL.FPN.OUT_CHANNELS", "8"], "shape (backbone.fpn_lateral2"),
    ],
)
def test_evaluation_needs_the_models_own_weights(
    run: Path, tmp_path: Path, weights: str, options: list[str], message: str
) -> None:
    arguments = ["--config-file", str(run / "config.yaml"), "--eval-only"]
    options = [*options, "MODEL.WEIGHTS", weights and str(run / weights)]
    options += ["OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(CellDataError, match=re.escape(message)):
        train_net.main(default_argument_parser().parse_args([*arguments, *options]))


@pytest.mark.slow
@pytest.mark.parametrize("with_map", [True, False])
def test_prediction_writes_a_valid_submission(
    run: Path, data: Path, tmp_path: Path, with_map: bool
) -> None:
    id_map = data / "test_image_name_to_ids.json"
    arguments = ["--config-file", str(run / "config.yaml"), "--input", str(data / "test_release")]
    arguments += ["--output", str(tmp_path), "--overlay"]
    arguments += ["--id-map", str(id_map)] if with_map else []
    assert predict.run([*arguments, "MODEL.WEIGHTS", str(run / "model_final.pth")]) == 0
    checks = {"id_map": id_map} if with_map else {}
    report = check_submission(
        tmp_path / "test-results.zip", images=data / "test_release", require_all=True, **checks
    )
    assert not report.faults
    assert report.total > 0
    names = sorted(p.stem for p in (data / "test_release").glob("*.tif"))
    assert sorted(p.stem for p in (tmp_path / "overlays").glob("*.png")) == names
    ids = {e["id"] for e in json.loads(id_map.read_text())}
    entries = json.loads((tmp_path / "test-results.json").read_text())
    assert {e["image_id"] for e in entries} <= (ids if with_map else {1, 2})
    scores = np.array([e["score"] for e in entries])
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--config-file", "no.yaml"], 2, "no.yaml: no such file"),
        (["SOLVER.MAX_ITERS", "3"], 2, "MAX_ITERS"),
        (["SOLVER.IMS_PER_BATCH", "0"], 2, "IMS_PER_BATCH"),
        (["DATASETS.CELL.GROUP_PATTERN", "("], 2, "GROUP_PATTERN"),
        (["SEED", "-1"], 2, "SEED"),
        (["--num-gpus", "64"], 2, "--num-gpus 64"),
        (["DATASETS.CELL.ROOT", "/no/such/folder"], 1, "/no/such/folder"),
        ([], 1, "DATASETS.CELL.ROOT"),
    ],
)
def test_training_refuses_with_one_line(options, status, message, capsys) -> None:
    assert train_net.run(options) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["DATASETS.CELL.VAL_FRACTION", "0"], "cells_val, which holds no image"),
        (["DATASETS.TEST", "('cells_test',)"], "no annotations"),
        (["DATASETS.TEST", "('cell_val',)"], "cells_trainval"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN"),
    ],
)
def test_data_sets_that_cannot_be_used_are_refused_before_training(
    options, message, data: Path, repository: Path, tmp_path: Path, capsys
) -> None:
    config = repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml"
    common = ["DATASETS.CELL.ROOT", str(data), "OUTPUT_DIR", str(tmp_path), *TINY]
    assert train_net.run(["--config-file", str(config), *common, *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("model_*"))


@pytest.mark.slow
def test_two_evaluation_sets(data: Path, repository: Path, tmp_path: Path, capsys) -> None:
    config = repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml"
    common = ["DATASETS.CELL.ROOT", str(data), "OUTPUT_DIR", str(tmp_path), *TINY]
    sets = ["DATASETS.TEST", "('cells_train', 'cells_val')"]
    assert train_net.run(["--config-file", str(config), *common, *sets]) == 0
    assert "cells_train/segm AP50: " in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {"cells_train/segm", "cells_val/segm"} <= scores.keys()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_file_that_breaks_during_a_run_is_named(
    workers: str, data: Path, repository: Path, tmp_path: Path, capsys
) -> None:
    root = tmp_path / "data"
    shutil.copytree(data, root)
    for image in (root / "train").glob("*/image.tif"):
        # Sound in its header, which is all that parsing reads, and cut in its pixels.
        image.write_bytes(image.read_bytes()[:-200])
    config = repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml"
    common = ["DATASETS.CELL.ROOT", str(root), "OUTPUT_DIR", str(tmp_path / "run"), *TINY]
    status = train_net.run(
        ["--config-file", str(config), *common, "DATALOADER.NUM_WORKERS", workers]
    )
    error = capsys.readouterr().err
    assert status == 1, error
    assert "error: " in error and "image.tif: found" in error


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"--config-file": "no.yaml"}, 2, "no.yaml"),
        ({"--input": "nowhere"}, 1, "nowhere"),
        ({"--id-map": "no.json"}, 1, "no.json"),
        ({}, 1, "MODEL.WEIGHTS"),
    ],
)
def test_prediction_refuses_with_one_line(
    data: Path, repository: Path, tmp_path: Path, changes, status, message, capsys
) -> None:
    values = {
        "--config-file": str(repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml"),
        "--input": str(data / "test_release"),
        "--output": str(tmp_path / "out"),
    } | changes
    assert predict.run([word for pair in values.items() for word in pair]) == status
    error = capsys.readouterr().err
    assert "error: " in error and message in error and "Traceback" not in error
    assert not list((tmp_path / "out").glob("test-results*"))


@pytest.mark.parametrize("script", [train_net.run, predict.run])
def test_wrong_usage_exits_with_2(script) -> None:
    with pytest.raises(SystemExit) as stop:
        script(["--no-such-option"] if script is predict.run else ["--num-gpus", "many"])
    assert stop.value.code == 2


@pytest.mark.parametrize("name", ["train_net", "predict"])
def test_every_script_has_help(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        {"train_net": train_net.run, "predict": predict.run}[name](["-h"])
    assert stop.value.code == 0 and "--config-file" in capsys.readouterr().out
