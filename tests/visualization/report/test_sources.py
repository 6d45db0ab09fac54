"""What is missing or does not belong together is refused, with the command that makes it."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from cellseg_d2.errors import CellDataError, ConfigError
from cellseg_d2.visualization.report.sources import (
    EVALUATION_FOLDER,
    RunSources,
    evaluation_command,
    read_run,
)

from .runs import CLASSES, HOSTILE_IMAGE

EVALUATION = f"{EVALUATION_FOLDER}/cells_trainval"


@pytest.fixture
def copy(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be broken."""
    return shutil.copytree(run_folder, tmp_path / "run")


def change(path: Path, edit) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def test_all_is_read(run: RunSources) -> None:
    assert run.class_names == CLASSES
    assert HOSTILE_IMAGE in {row["name"] for row in run.details["images"]}
    assert run.dicts.keys() == run.predictions.keys() and len(run.dicts) == 5
    classes = {p["category_id"] for own in run.predictions.values() for p in own}
    assert classes <= {0, 1, 2, 3} and 0 in classes
    assert run.record["sessions"] and "total_loss" in run.metrics
    assert run.task_scores("segm")["AP50"] > 0 and run.task_scores("depth") == {}


def test_of_several_sets_the_scores_are_this_ones(run: RunSources) -> None:
    run.scores["cells_trainval/segm"] = {"AP50": 1.0}
    assert run.task_scores("segm") == {"AP50": 1.0}


def test_a_moved_run_is_read_where_it_is(copy: Path) -> None:
    assert read_run(copy).cfg.OUTPUT_DIR == str(copy)


def test_a_run_may_lack_its_record_and_metrics(copy: Path) -> None:
    (copy / "run.json").unlink()
    (copy / "metrics.json").unlink()
    run = read_run(copy)
    assert run.record is None and run.metrics == {}


@pytest.mark.parametrize(
    "name",
    [
        f"{EVALUATION}/evaluation_details.json",
        f"{EVALUATION}/coco_instances_results.json",
        "scores.json",
    ],
)
@pytest.mark.parametrize("content", [None, "", "7", '{"a'])
def test_what_an_evaluation_writes_is_needed(copy: Path, name: str, content: str | None) -> None:
    path = copy / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CellDataError) as caught:
        read_run(copy)
    assert str(path) in str(caught.value)
    assert f"train_net.py --config-file {copy}/config.yaml --eval-only" in str(caught.value)


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ([], "CHECKPOINT.pth"),
        (["model_0000099.pth", "model_0000199.pth"], "model_0000199.pth"),
        (["model_0000099.pth", "model_final.pth"], "model_final.pth"),
        (["model_ema.pth", "model_final.pth"], "model_ema.pth"),
        (["model_best.pth", "model_ema.pth", "model_final.pth"], "model_best.pth"),
    ],
)
def test_the_command_names_the_best_checkpoint(tmp_path: Path, saved, expected: str) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    for name in saved:
        (folder / name).touch()
    words = shlex.split(evaluation_command(folder))
    weights = str(folder / expected) if saved else expected
    assert words[words.index("MODEL.WEIGHTS") + 1] == weights
    assert words[words.index("OUTPUT_DIR") + 1] == str(folder)


@pytest.mark.parametrize("prefix", ["ema/", "ema/cells_trainval/"])
def test_of_averaged_weights_the_scores_belong_to_the_details(copy: Path, prefix: str) -> None:
    """As a training leaves them: the averaged weights are evaluated last."""
    scores = json.loads((copy / "scores.json").read_text())
    averaged = {prefix + task: dict(values) for task, values in scores.items()}
    for values in scores.values():
        values.update(dict.fromkeys(values, 1.0))
    (copy / "scores.json").write_text(json.dumps({**scores, **averaged}))
    run = read_run(copy)
    assert run.task_scores("segm") == averaged[f"{prefix}segm"]
    assert run.task_scores("nothing") == {}
    averaged[f"{prefix}segm"]["AP50"] += 0.5
    (copy / "scores.json").write_text(json.dumps({**scores, **averaged}))
    with pytest.raises(CellDataError, match="segm AP50"):
        read_run(copy)


def test_scores_of_another_evaluation_are_refused(copy: Path) -> None:
    for task, key in (("panoptic", "PQ"), ("segm", "AP50")):
        scores = json.loads((copy / "scores.json").read_text())
        scores[task][key] += 0.5
        saved = (copy / "scores.json").read_text()
        (copy / "scores.json").write_text(json.dumps(scores))
        with pytest.raises(CellDataError, match=f"{task} {key}"):
            read_run(copy)
        (copy / "scores.json").write_text(saved)


def test_an_evaluation_of_other_images_is_refused(copy: Path) -> None:
    details = copy / EVALUATION / "evaluation_details.json"
    change(details, lambda value: value["images"][0].update(name="another"))
    with pytest.raises(CellDataError, match="another"):
        read_run(copy)


def test_predictions_without_masks_are_refused(copy: Path) -> None:
    predictions = copy / EVALUATION / "coco_instances_results.json"
    change(predictions, lambda value: value[0].pop("segmentation"))
    with pytest.raises(CellDataError, match="MASK_ON"):
        read_run(copy)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CellDataError, match="config.yaml"):
        read_run(tmp_path)


def test_a_data_set_that_was_not_evaluated_is_refused(run_folder: Path) -> None:
    with pytest.raises(ConfigError, match="cells_val"):
        read_run(run_folder, dataset="cells_val")
    with pytest.raises(ConfigError, match="no data sets"):
        read_run(run_folder, ["DATASETS.TEST", "()"])


def test_data_that_moved_are_named_by_an_option(copy: Path, tmp_path: Path) -> None:
    root = Path(read_run(copy).cfg.DATASETS.CELL.ROOT)
    moved = shutil.copytree(root, tmp_path / "moved")
    run = read_run(copy, ["DATASETS.CELL.ROOT", str(moved)])
    assert {Path(item["file_name"]).parents[2] for item in run.dicts.values()} == {moved}
    with pytest.raises(CellDataError, match="DATASETS.CELL.ROOT"):
        read_run(copy, ["DATASETS.CELL.ROOT", str(tmp_path / "nowhere")])
