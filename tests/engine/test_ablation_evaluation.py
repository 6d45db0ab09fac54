"""Further evaluations of runs, with a script in the place of the evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cellseg_d2 import CellDataError, load_config
from cellseg_d2.engine.ablation import Run
from cellseg_d2.engine.ablation_evaluation import (
    evaluate_run,
    evaluation_command,
    evaluation_folder,
    read_evaluation,
)
from cellseg_d2.engine.ablation_file import Ablation, Evaluation, Split
from cellseg_d2.engine.ablation_table import summarize, write_tables

# AP50 is the NMS threshold in percent; 1 fails.
STUB = """
import json, sys
from pathlib import Path
assert sys.argv[1] == "--config-file" and sys.argv[3] == "--eval-only"
options = dict(zip(sys.argv[4::2], sys.argv[5::2]))
nms = float(options["MODEL.ROI_HEADS.NMS_THRESH_TEST"])
out = Path(options["OUTPUT_DIR"])
with open(out / "calls", "a") as file:
    file.write(options["MODEL.WEIGHTS"] + "\\n")
if nms == 1:
    sys.exit("no such threshold")
(out / "scores.json").write_text(json.dumps({"segm": {"AP50": 100 * nms}, "bbox": {}}))
"""


def nms(value: float, name: str = "nms") -> Evaluation:
    return Evaluation(name, ("MODEL.ROI_HEADS.NMS_THRESH_TEST", str(value)))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return finished(tmp_path, "small", 1)


def finished(output: Path, variant: str, seed: int, split: str = "") -> Run:
    folder = output / variant / split / f"seed{seed}"
    folder.mkdir(parents=True)
    result = {"scores": {"segm": {"AP50": 10.0}}, "parameters": 5, "seconds": 1.0}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text(load_config(options=["SEED", "5"]).dump())
    return Run(variant, seed, folder, Path("x.yaml"), (), split)


def calls(run: Run, name: str = "nms") -> list[str]:
    return (run.folder / "evaluations" / name / "calls").read_text().splitlines()


def test_what_is_evaluated_is_not_evaluated_again(run: Run, script: Path) -> None:
    assert read_evaluation(run, nms(0.4)) is None
    for _ in range(2):
        assert evaluate_run(run, [nms(0.4), nms(0.7, "other")], script) == []
    assert read_evaluation(run, nms(0.4))["segm"] == {"AP50": 40.0}
    assert read_evaluation(run, nms(0.7, "other"))["segm"] == {"AP50": 70.0}
    assert len(calls(run)) == len(calls(run, "other")) == 1
    # With other options it is another evaluation.
    assert read_evaluation(run, nms(0.5)) is None
    assert evaluate_run(run, [nms(0.5)], script) == []
    assert read_evaluation(run, nms(0.5))["segm"] == {"AP50": 50.0}
    assert len(calls(run)) == 2
    cfg = load_config(evaluation_folder(run, nms(0.5)) / "config.yaml")
    assert (cfg.SEED, cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST) == (5, 0.5)
    assert cfg.OUTPUT_DIR == str(evaluation_folder(run, nms(0.5)))
    # The training's own result is left as it is.
    assert json.loads((run.folder / "result.json").read_text())["scores"]["segm"]["AP50"] == 10


def test_averaged_weights_are_taken_where_there_are_some(run: Run, script: Path) -> None:
    command = evaluation_command(run, nms(0.4), script)
    assert command[command.index("MODEL.WEIGHTS") + 1] == str(run.folder / "model_final.pth")
    assert command[3] == str(run.folder / "config.yaml")
    (run.folder / "model_ema.pth").touch()
    command = evaluation_command(run, nms(0.4), script)
    assert command[command.index("MODEL.WEIGHTS") + 1] == str(run.folder / "model_ema.pth")
    # What the file says comes last, and prevails.
    assert command[-2:] == ["MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.4"]


def test_a_failure_is_reported_and_tried_again(run: Run, script: Path) -> None:
    failure, *more = evaluate_run(run, [nms(1), nms(0.4, "good")], script)
    assert not more and failure.run is run
    assert (failure.reason, failure.tail) == ("exit status 1", ("no such threshold",))
    assert read_evaluation(run, nms(0.4, "good")) is not None
    evaluate_run(run, [nms(1)], script)
    assert len(calls(run)) == 2


def test_a_damaged_result_is_an_error(run: Run, script: Path) -> None:
    evaluate_run(run, [nms(0.4)], script)
    path = evaluation_folder(run, nms(0.4)) / "result.json"
    path.write_text("{}")
    with pytest.raises(CellDataError, match=r"result\.json.*remove it"):
        read_evaluation(run, nms(0.4))


def test_the_tables_have_them_by_split(script: Path, tmp_path: Path) -> None:
    runs = [finished(tmp_path, "small", seed, split) for split in "ab" for seed in (1, 2)]
    ablation = Ablation("x", "", (1, 2), (), (Split("a", ()), Split("b", ())), (nms(0.4),))
    for run in runs[:3]:
        evaluate_run(run, ablation.evaluations, script)
    text = write_tables(tmp_path, ablation, runs)
    first, second = text.split("# Evaluation nms")
    assert "40.0" not in first and first.count("| small") == 3
    assert "With `MODEL.ROI_HEADS.NMS_THRESH_TEST 0.4`." in second
    lines = [line for line in second.splitlines() if line.startswith("| small")]
    assert [line.split("|")[2].strip() for line in lines] == ["3 of 4", "2", "1 of 2"]
    assert all("40.0 ± " in line for line in lines)
    assert "40.0000" in (tmp_path / "table-nms.csv").read_text()
    assert "40.0000" not in (tmp_path / "table.csv").read_text()
    unfinished = replace(runs[0], folder=tmp_path / "nowhere")
    assert summarize([unfinished], nms(0.4))[0].finished == 0
