"""`run_ablation`, from a YAML file to tables and curves."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset

STUB = """
import json, sys
from pathlib import Path
options = dict(zip(sys.argv[4::2], sys.argv[5::2]))
if options["SOLVER.OPTIMIZER"] == "Adam":
    sys.exit("no such luck")
out = Path(options["OUTPUT_DIR"])
(out / "metrics.json").write_text(json.dumps({"iteration": 1, "total_loss": 2.0, "lr": 0.1}))
scores = {"segm": {"AP": 40.0, "AP50": 80.0 + int(options["SEED"]), "AP75": 1.0}, "bbox": {}}
(out / "scores.json").write_text(json.dumps(scores))
"""

TINY = """
  MODEL.FPN.OUT_CHANNELS: 16
  MODEL.ROI_BOX_HEAD.FC_DIM: 32
  MODEL.ROI_MASK_HEAD.CONV_DIM: 16
  MODEL.RPN.PRE_NMS_TOPK_TRAIN: 100
  MODEL.RPN.POST_NMS_TOPK_TRAIN: 50
  MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE: 16
  TEST.DETECTIONS_PER_IMAGE: 20
  INPUT.CROP.SIZE: [64, 64]
  INPUT.CELL.CHANNEL_ORDER: BGR
  SOLVER.IMS_PER_BATCH: 2
  SOLVER.MAX_ITER: 2
  SOLVER.CHECKPOINT_PERIOD: 1
  DATALOADER.NUM_WORKERS: 0
"""

# train_net.py, killed before the second iteration of SGD, once.
INTERRUPTED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {repository!r})
import train_net
from cellseg_d2.engine import CellTrainer
run_step, marker = CellTrainer.run_step, Path({marker!r})
def run_step_or_end(self):
    if self.iter == 1 and self.cfg.SOLVER.OPTIMIZER == "SGD" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    run_step(self)
CellTrainer.run_step = run_step_or_end
sys.exit(train_net.run())
"""


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    path = repository / "tools" / "run_ablation.py"
    spec = importlib.util.spec_from_file_location("run_ablation", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def log_levels():
    """The tool sets them for its own process."""
    loggers = [
        logging.getLogger(name) for name in ("cellseg_d2.engine.ablation", "cellseg_d2.config")
    ]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    return path


@pytest.fixture
def arguments(tmp_path: Path, repository: Path) -> list[str]:
    path = tmp_path / "table.yaml"
    path.write_text(f"""
base: {repository}/configs/mask_rcnn_R_18_FPN_small.yaml
seeds: [1, 3]
options: {TINY.replace(chr(10), chr(10) + "  ")}
forms: {{one: {{seeds: [5]}}}}
variants:
  sgd: {{options: {{SOLVER.OPTIMIZER: SGD}}}}
  adam: {{options: {{SOLVER.OPTIMIZER: Adam}}}}
  adamw: {{options: {{SOLVER.OPTIMIZER: AdamW}}}}
""")
    return ["--ablation", str(path), "--output", str(tmp_path / "out")]


def rows(output: Path) -> dict[str, dict[str, str]]:
    with open(output / "table.csv", newline="") as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


def test_a_failure_is_reported_and_the_others_are_tabulated(
    tool, arguments, script: Path, tmp_path: Path, capsys
) -> None:
    assert tool.main(arguments, script) == 1
    printed = capsys.readouterr()
    for seed in (1, 3):
        folder = tmp_path / "out" / "adam" / f"seed{seed}"
        assert f"error: {folder}: exit status 1; it ends with\n  no such luck\n" in printed.err
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert printed.out == table and "82.0 ± 1.4" in table
    found = rows(tmp_path / "out")
    assert [(name, row["finished"]) for name, row in found.items()] == [
        ("sgd", "2"),
        ("adam", "0"),
        ("adamw", "2"),
    ]
    assert float(found["adamw"]["segm_AP50_mean"]) == 82
    assert Image.open(tmp_path / "out" / "curves.png").width > 500


def test_chosen_variants_alone_are_trained_and_all_are_tabulated(
    tool, arguments, script: Path, tmp_path: Path
) -> None:
    chosen = [*arguments, "--form", "one", "--only"]
    assert tool.main([*chosen, "sgd", "SOLVER.BASE_LR", "0.5"], script) == 0
    assert [row["finished"] for row in rows(tmp_path / "out").values()] == ["1", "0", "0"]
    assert tool.main([*chosen, "adamw", "sgd", "--", "SOLVER.BASE_LR", "0.5"], script) == 0
    assert [row["finished"] for row in rows(tmp_path / "out").values()] == ["1", "0", "1"]
    assert {p.name for p in (tmp_path / "out" / "sgd").iterdir()} == {"seed5"}


def test_a_dry_run_says_what_would_be_done(tool, arguments, tmp_path: Path, capsys) -> None:
    words = ["DATASETS.CELL.ROOT", "my cells", *arguments, "--dry-run", "--form", "one"]
    assert tool.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'out' / 'sgd' / 'seed5'}: new"
    assert len(lines) == 6
    assert "train_net.py --config-file" in lines[1] and "--resume" in lines[1]
    assert "DATASETS.CELL.ROOT 'my cells' SEED 5 OUTPUT_DIR" in lines[1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--form", "two"], "no form 'two'"),
        (["--only", "lion"], "no variant lion"),
        (["SOLVER.MAX_ITERS", "1"], "MAX_ITERS"),
        (["SEED", "1"], "SEED is set"),
        (["--ablation", "none.yaml"], "none.yaml: no such file"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_line(
    tool, arguments, script: Path, tmp_path: Path, words: list[str], message: str, capsys
) -> None:
    assert tool.main([*arguments, *words], script) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "status"), [(["-h"], 0), ([], 2), (["--seeds", "1"], 2)])
def test_help_and_missing_arguments(tool, words: list[str], status: int) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.main(words)
    assert stop.value.code == status


def test_an_interrupt_ends_with_one_line(tool, arguments, script, monkeypatch, capsys) -> None:
    def interrupt(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupt)
    assert tool.main(arguments, script) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


@pytest.mark.slow
def test_the_training_ends_with_the_tool(repository: Path, arguments, tmp_path: Path) -> None:
    """A copy of the tool whose training sleeps is ended as a batch system would."""
    (tmp_path / "tools").mkdir()
    tool = tmp_path / "tools" / "run_ablation.py"
    tool.write_bytes((repository / "tools" / "run_ablation.py").read_bytes())
    ticks = tmp_path / "ticks"
    (tmp_path / "train_net.py").write_text(
        f"import time\nwhile True:\n  open({str(ticks)!r}, 'a').write('x')\n  time.sleep(0.05)\n"
    )
    process = subprocess.Popen(
        [sys.executable, tool, *arguments], env={"PYTHONPATH": str(repository)}
    )
    try:
        end = time.monotonic() + 60
        while not ticks.exists() and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    finally:
        process.kill()
    before = ticks.stat().st_size
    time.sleep(0.3)
    assert ticks.stat().st_size == before > 0


@pytest.mark.slow
def test_an_interrupted_ablation_is_completed(
    tool, arguments, repository: Path, tmp_path: Path
) -> None:
    root, output = tmp_path / "data", tmp_path / "out"
    write_dataset(root, SyntheticParameters(train=4, test=0, size=(64, 80), cells=(4, 8)))
    script = tmp_path / "train.py"
    marker = str(tmp_path / "killed")
    script.write_text(INTERRUPTED.format(repository=str(repository), marker=marker))
    words = [*arguments, "--form", "one", "--only", "sgd", "adamw", "DATASETS.CELL.ROOT", str(root)]
    assert tool.main(words, script) == 1
    sgd, adamw = output / "sgd" / "seed5", output / "adamw" / "seed5"
    assert (sgd / "model_0000000.pth").is_file() and not (sgd / "scores.json").exists()
    assert [rows(output)[name]["finished"] for name in ("sgd", "adamw")] == ["0", "1"]
    finished = (adamw / "log.txt").stat().st_mtime_ns

    assert tool.main(words) == 0
    assert "Starting training from iteration 1" in (sgd / "train.log").read_text()
    assert torch.load(sgd / "model_final.pth", weights_only=True)["iteration"] == 1
    assert (adamw / "log.txt").stat().st_mtime_ns == finished
    for name, folder in (("sgd", sgd), ("adamw", adamw)):
        row = rows(output)[name]
        scores = json.loads((folder / "scores.json").read_text())
        assert float(row["segm_AP50_mean"]) == pytest.approx(scores["segm"]["AP50"], abs=1e-4)
        assert row["segm_AP50_spread"] == "" and int(row["parameters"]) > 11_000_000
    assert Image.open(output / "curves.png").width > 500

    # Ended between its last checkpoint and its scores, a run has only to be evaluated.
    (sgd / "result.json").unlink()
    (sgd / "scores.json").unlink()
    before = rows(output)
    assert tool.main(words) == 0
    assert "Starting training from iteration 2" in (sgd / "train.log").read_text()
    assert rows(output) == before
