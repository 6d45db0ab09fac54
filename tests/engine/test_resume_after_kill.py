"""train_net.py, ended by SIGKILL at every point that matters, against a run that was let be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset

# Runs train_net.py in a forked process for each job: [folder, where to be killed, and at which time
# of coming there; or after how many seconds], and prints the exit statuses. Nothing is computed
# before the fork. The scores depend on the weights, and rise, then fall.
SCRIPT = """
import json, os, signal, sys, time
sys.path.insert(0, {repository!r})
import torch
import train_net
from pathlib import Path
from cellseg_d2.checkpoint import CellCheckpointer
from cellseg_d2.engine import CellTrainer, curve_hook
from cellseg_d2.engine.best_model import BestModel
from cellseg_d2.engine.hooks import Checkpoints
from cellseg_d2.engine.metric_rows import MetricRows
from cellseg_d2.engine.validation import ValidationLosses

def score(self, cfg, model):
    total = sum(p.double().abs().sum().item() for p in model.parameters())
    return {{"segm": {{"AP50": 10 * [1, 3, 4, 2][self.iter // 2] + 1e-3 * total}}}}

CellTrainer.test = score
curve_hook.plot_metrics = lambda *_: None
countdown = [0]

def die():
    countdown[0] -= 1
    if countdown[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def around(kind, name, before, argument=None):
    original = getattr(kind, name)
    def replaced(*args, **kwargs):
        meant = argument is None or argument in args
        before and meant and die()
        answer = original(*args, **kwargs)
        before or meant and die()
        return answer
    setattr(kind, name, replaced)

def half_written():
    save = torch.save
    def torn(data, file):
        start = file.tell()
        save(data, file)
        size = file.tell()
        file.truncate(start + (size - start) // 2)
        file.flush()
        die()
        file.seek(start)
        file.truncate()
        save(data, file)
    torch.save = torn

POINTS = {{
    "in a step": lambda: around(CellTrainer, "run_step", True),
    "in an evaluation": lambda: around(ValidationLosses, "__call__", True),
    "before the best model": lambda: around(BestModel, "_save", True),
    "after the best model": lambda: around(BestModel, "_save", False),
    "after the metrics": lambda: around(MetricRows, "after_step", False),
    "in a file": half_written,
    "before last_checkpoint": lambda: around(CellCheckpointer, "tag_last_checkpoint", True),
    "before old ones go": lambda: around(CellCheckpointer, "tag_last_checkpoint", False),
    "before model_final": lambda: around(CellCheckpointer, "save", True, "model_final"),
    "before it is named": lambda: around(
        CellCheckpointer, "tag_last_checkpoint", True, "model_final.pth"
    ),
    "after a checkpoint": lambda: around(Checkpoints, "after_step", False),
}}

statuses = []
for folder, point, count in json.loads(sys.argv[1]):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        if point in POINTS:
            countdown[0] = count
            POINTS[point]()
        os._exit(train_net.run(["--resume", *sys.argv[2:], "OUTPUT_DIR", folder]))
    if point == "at some time":
        time.sleep(count)
        os.kill(child, signal.SIGKILL)
    statuses.append(os.waitpid(child, 0)[1])
print(json.dumps(statuses))
"""

OPTIONS = [
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.CROP.SIZE", "[48, 48]", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_EPOCHS", "0"),
    *("SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.KEEP_CHECKPOINTS", "2"),
    *("SOLVER.EMA.ENABLED", "True", "TEST.EVAL_PERIOD", "2", "TEST.LOSS_IMAGES", "1"),
    *("TEST.EARLY_STOPPING.PATIENCE", "50"),
]

# Each run goes on from what the one before left.
CHAINS = {
    "early": [("in a step", 1), ("in a file", 3), ("before last_checkpoint", 1)],
    "middle": [
        ("after the best model", 2),
        ("in an evaluation", 2),
        ("after the metrics", 2),
        ("before old ones go", 2),
    ],
    "late": [
        ("before the best model", 2),
        ("after a checkpoint", 2),
        ("before model_final", 1),
        ("before it is named", 1),
    ],
    "whenever": [("at some time", 0.7), ("at some time", 1.6)],
}


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(repository: Path, tmp_path: Path, same) -> None:
    data = tmp_path / "data"
    write_dataset(data, SyntheticParameters(train=6, test=0, size=(56, 64), cells=(3, 6)))
    script = tmp_path / "killed.py"
    script.write_text(SCRIPT.format(repository=str(repository)))
    jobs: list[tuple[str, str, float]] = [(str(tmp_path / "whole"), "", 0)]
    for chain, points in CHAINS.items():
        jobs += [(str(tmp_path / chain), *point) for point in points]
        jobs.append((str(tmp_path / chain), "", 0))
    config = ["--config-file", str(repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml")]
    words = [json.dumps(jobs), *config, "DATASETS.CELL.ROOT", str(data), *OPTIONS]
    done = subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    statuses = json.loads(done.stdout.splitlines()[-1])
    for (folder, point, _), status in zip(jobs, statuses, strict=True):
        expected = (9,) if point and point != "at some time" else (0, 9) if point else (0,)
        assert status in expected, (folder, point, done.stderr[-3000:])

    whole = outcome(tmp_path / "whole")
    assert sorted(whole["files"]) == [
        *("model_0000005.pth", "model_0000007.pth"),
        *("model_best.pth", "model_ema.pth", "model_final.pth"),
    ]
    assert len(whole["rows"]) == 4 and whole["scores"]["segm"]["AP50"] > 0
    assert whole["files"]["model_best.pth"]["iteration"] == 5
    for chain in CHAINS:
        found = outcome(tmp_path / chain)
        assert found["rows"] == whole["rows"], chain
        assert found["files"].keys() == whole["files"].keys(), chain
        for name, content in whole["files"].items():
            assert same(found["files"][name], content), (chain, name)
        assert found["scores"] == whole["scores"], chain
        assert found["last"] == whole["last"] == "model_final.pth"


def outcome(folder: Path) -> dict[str, Any]:
    """What a run left, but for times; of its files, those of the model."""
    files = {path.name: torch.load(path) for path in folder.glob("*.pth*")}
    for content in files.values():
        rows = content.get("trainer", {}).get("hooks", {}).get("MetricRows", {})
        for key in ("time", "data_time"):
            rows.pop(key, None)
    lines = (folder / "metrics.json").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if "time" not in k} for line in lines]
    return {
        "files": files,
        "rows": rows,
        "scores": json.loads((folder / "scores.json").read_text()),
        "last": (folder / "last_checkpoint").read_text(),
    }
