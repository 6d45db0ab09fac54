"""Runs of an ablation, with a script in the place of the training that writes what it would."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from cellseg_d2 import CellDataError, ConfigError, load_config
from cellseg_d2.engine.ablation import (
    TAIL_LINES,
    Failure,
    Run,
    choose_runs,
    plan_runs,
    read_result,
    train_runs,
)
from cellseg_d2.engine.ablation_file import Ablation, Split, Variant
from cellseg_d2.modeling.parameter_count import count_parameters

# Writes config.yaml, then scores: AP50 is 80 + SEED, or 10 under SGD. A folder that holds "crash"
# makes it fail.
STUB = """
import json, os, signal, sys
from pathlib import Path
options = dict(zip(sys.argv[4::2], sys.argv[5::2]))
assert sys.argv[1] == "--config-file" and sys.argv[3] == "--resume"
out = Path(options["OUTPUT_DIR"])
with open(out / "calls", "a") as file:
    file.write(options.get("SOLVER.MAX_ITER", "") + "\\n")
(out / "last_checkpoint").write_text("model_0000001.pth")
crash = out / "crash"
if crash.exists():
    for number in range(100):
        print("line", number)
    print("the cause", file=sys.stderr)
    how = crash.read_text()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(int(how))
lines = [{"iteration": 19, "time": 0.5, "total_loss": 2.0}, {"iteration": 24, "time": 1.0}]
(out / "metrics.json").write_text("".join(json.dumps(line) + "\\n" for line in lines))
ap50 = 10 if options.get("SOLVER.OPTIMIZER") == "SGD" else 80 + int(options["SEED"])
scores = {"segm": {"AP": 40.0, "AP50": ap50, "AP75": None}, "bbox": {"AP50": 90.0}}
(out / "scores.json").write_text(json.dumps(scores))
"""
CONFIG = Path("configs") / "mask_rcnn_R_18_FPN_small.yaml"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    return path


@pytest.fixture
def ablation(repository: Path) -> Ablation:
    config = repository / CONFIG
    sgd = Variant("sgd", config, ("SOLVER.OPTIMIZER", "SGD", "SOLVER.MAX_ITER", "5"))
    return Ablation("optimizers", "", (1, 2), (sgd, Variant("adamw", config, ())))


def calls(run: Run) -> int:
    return len((run.folder / "calls").read_text().splitlines())


def test_each_variant_and_seed_has_its_folder_and_options(ablation, tmp_path: Path) -> None:
    runs = plan_runs(ablation, tmp_path, ["SOLVER.MAX_ITER", "7"])
    folders = [str(run.folder.relative_to(tmp_path)) for run in runs]
    assert folders == ["sgd/seed1", "sgd/seed2", "adamw/seed1", "adamw/seed2"]
    cfgs = [load_config(run.config, run.options) for run in runs]
    assert [cfg.SEED for cfg in cfgs] == [1, 2, 1, 2]
    assert [cfg.OUTPUT_DIR for cfg in cfgs] == [str(run.folder) for run in runs]
    assert [cfg.SOLVER.OPTIMIZER for cfg in cfgs] == ["SGD", "SGD", "AdamW", "AdamW"]
    assert {cfg.SOLVER.MAX_ITER for cfg in cfgs} == {7}
    assert {cfg.DATASETS.CELL.CACHE_DIR for cfg in cfgs} == {str(tmp_path / "annotation_cache")}
    assert not list(tmp_path.iterdir())


def test_splits_have_their_folders_and_prevail_over_variants(ablation, tmp_path: Path) -> None:
    splits = tuple(Split(n, ("DATASETS.CELL.VAL_NAMES", f"['{n}']")) for n in ("a", "b"))
    variant = replace(ablation.variants[0], options=("DATASETS.CELL.VAL_NAMES", "['x']"))
    runs = plan_runs(replace(ablation, splits=splits, variants=(variant,)), tmp_path)
    folders = [str(run.folder.relative_to(tmp_path)) for run in runs]
    assert folders == ["sgd/a/seed1", "sgd/a/seed2", "sgd/b/seed1", "sgd/b/seed2"]
    assert [run.split for run in runs] == ["a", "a", "b", "b"]
    names = [load_config(run.config, run.options).DATASETS.CELL.VAL_NAMES for run in runs]
    assert names == [["a"], ["a"], ["b"], ["b"]]


def test_what_is_finished_is_not_trained_again(ablation, script: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    runs = plan_runs(ablation, output)
    assert {run.state for run in runs} == {"new"}
    assert list(train_runs(runs, script)) == [(run, None) for run in runs]
    assert {run.state for run in runs} == {"finished"}
    assert list(train_runs(runs, script)) == [(run, None) for run in runs]
    assert {calls(run) for run in runs} == {1}


def test_evaluations_of_a_former_training_are_forgotten(ablation, script, tmp_path: Path) -> None:
    run, other = plan_runs(ablation, tmp_path / "out")[:2]
    list(train_runs([run, other], script))
    results = [r.folder / "evaluations" / "tiles" / "result.json" for r in (run, other)]
    for result in results:
        result.parent.mkdir(parents=True)
        result.write_text("{}")
    (run.folder / "result.json").unlink()
    list(train_runs([run, other], script))
    assert run.finished and [result.is_file() for result in results] == [False, True]


def test_a_result_holds_scores_parameters_and_seconds(ablation, script, tmp_path: Path) -> None:
    run = plan_runs(ablation, tmp_path / "out")[3]
    list(train_runs([run], script))
    cfg = load_config(run.config, run.options)
    assert read_result(run) == {
        "scores": {"segm": {"AP": 40.0, "AP50": 82, "AP75": None}, "bbox": {"AP50": 90.0}},
        "parameters": count_parameters(cfg),
        "seconds": 20 * 0.5 + 5 * 1.0,
    }
    (run.folder / "result.json").write_text("{}")
    with pytest.raises(CellDataError, match=r"result\.json.*remove it"):
        read_result(run)


@pytest.mark.parametrize(("how", "reason"), [("3", "exit status 3"), ("kill", "signal SIGKILL")])
def test_a_crash_does_not_end_the_others_and_is_gone_on_from(
    ablation, script: Path, tmp_path: Path, how: str, reason: str
) -> None:
    runs = plan_runs(ablation, tmp_path / "out")
    bad = runs[1]
    bad.folder.mkdir(parents=True)
    (bad.folder / "crash").write_text(how)
    (bad.folder / "scores.json").write_text('{"segm": {}}')  # of another evaluation
    failures = [failure for _, failure in train_runs(runs, script) if failure]
    assert [(f.run, f.reason) for f in failures] == [(bad, reason)]
    numbers = range(100 - TAIL_LINES + 1, 100)
    assert failures[0].tail == (*(f"line {k}" for k in numbers), "the cause")
    assert [run.state for run in runs] == ["finished", "interrupted", "finished", "finished"]
    (bad.folder / "crash").unlink()
    assert [failure for _, failure in train_runs(runs, script)] == [None] * 4
    assert [calls(run) for run in runs] == [1, 2, 1, 1] and bad.finished


def test_a_training_without_scores_has_failed(ablation, tmp_path: Path) -> None:
    script = tmp_path / "stub.py"
    script.write_text("print('nothing to evaluate')")
    run, *_ = plan_runs(ablation, tmp_path / "out")
    expected = Failure(run, "wrote no scores.json", ("nothing to evaluate",))
    assert list(train_runs([run], script)) == [(run, expected)]
    assert not run.finished


def test_an_evaluation_of_an_unfinished_run_does_not_finish_it(ablation, tmp_path: Path) -> None:
    run, *_ = plan_runs(ablation, tmp_path)
    run.folder.mkdir(parents=True)
    (run.folder / "scores.json").write_text('{"segm": {"AP50": 1.0}}')
    (run.folder / "last_checkpoint").write_text("model_0000001.pth")
    assert run.state == "interrupted"


def test_an_iteration_time_that_is_not_there(ablation, script: Path, tmp_path: Path) -> None:
    script.write_text(STUB.replace('"time"', '"other"'))
    run, *_ = plan_runs(ablation, tmp_path / "out")
    list(train_runs([run], script))
    assert read_result(run)["seconds"] is None


def test_models_that_cannot_be_counted_are_still_finished(
    ablation, script: Path, tmp_path: Path, monkeypatch, caplog
) -> None:
    def refuse(cfg: object) -> int:
        raise NotImplementedError("no data")

    monkeypatch.setattr("cellseg_d2.engine.ablation.count_parameters", refuse)
    run, *_ = plan_runs(ablation, tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        assert list(train_runs([run], script)) == [(run, None)]
    assert read_result(run)["parameters"] is None and "no data" in caplog.text


def test_a_run_whose_normalisation_training_settled_is_gone_on_with(
    ablation, tmp_path: Path
) -> None:
    asked = ["INPUT.CELL.NORMALIZATION", "dataset"]
    run, *_ = plan_runs(ablation, tmp_path, asked)
    run.folder.mkdir(parents=True)
    settled = ["INPUT.CELL.NORMALIZATION", "config", "MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]]
    saved = load_config(run.config, [*run.options, *settled])
    (run.folder / "config.yaml").write_text(saved.dump())
    plan_runs(ablation, tmp_path, asked)
    with pytest.raises(ConfigError, match="holds a run with"):
        plan_runs(ablation, tmp_path)


def test_a_run_of_another_config_is_not_gone_on_with(ablation, tmp_path: Path) -> None:
    run, *_ = plan_runs(ablation, tmp_path)
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(load_config(run.config, run.options).dump())
    plan_runs(ablation, tmp_path)
    # Neither the machine nor the number of workers changes what is computed.
    plan_runs(ablation, tmp_path, ["DATALOADER.NUM_WORKERS", "3", "MODEL.DEVICE", "meta"])
    message = r"sgd/seed1: holds a run with SOLVER.MAX_ITER 5, not 6; choose another output"
    with pytest.raises(ConfigError, match=message):
        plan_runs(ablation, tmp_path, ["SOLVER.MAX_ITER", "6"])
    with pytest.raises(ConfigError, match="and 1 more"):
        plan_runs(ablation, tmp_path, ["SOLVER.MAX_ITER", "6", "SOLVER.BASE_LR", "0.5"])
    (run.folder / "config.yaml").write_text("[")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        plan_runs(ablation, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SOLVER.MAX_ITERS", "6"], "variant sgd: .*MAX_ITERS"),
        (["SOLVER.MAX_ITER"], "MAX_ITER"),
        (["SEED", "6"], "SEED is set for each run"),
        (["SOLVER.MAX_ITER", "6", "OUTPUT_DIR", "x"], "OUTPUT_DIR is set for each run"),
    ],
)
def test_options_are_checked_before_anything_is_trained(
    ablation, tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_runs(ablation, tmp_path, options)


def test_some_variants_can_be_chosen(ablation, tmp_path: Path) -> None:
    runs = plan_runs(ablation, tmp_path)
    assert choose_runs(runs) == runs
    assert choose_runs(runs, ["adamw"]) == runs[2:]
    with pytest.raises(ConfigError, match="no variant adam; the ablation has adamw, sgd"):
        choose_runs(runs, ["adam"])


def test_results_are_plain_json(ablation, script: Path, tmp_path: Path) -> None:
    run, *_ = plan_runs(ablation, tmp_path / "out")
    list(train_runs([run], script))
    assert json.loads((run.folder / "result.json").read_text())["scores"]["segm"]["AP75"] is None
