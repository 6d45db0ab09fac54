"""Two processes on the CPU do what one does: the same images, gradients, scores and weights."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling.proposal_generator import rpn
from detectron2.modeling.roi_heads import roi_heads
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

import train_net
from cellseg_d2 import load_config
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset
from cellseg_d2.engine import CellTrainer, register_datasets
from cellseg_d2.engine.launch import launch
from cellseg_d2.engine.parallel import parallelize
from cellseg_d2.evaluation import CellEvaluator
from cellseg_d2.structures import RLEMasks

IMAGES = 6
"""One is held out: five to train on, three for one rank and two for the other in an evaluation."""
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "mask_rcnn_R_18_FPN_small.yaml"
TINY = [
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.DEVICE", "cpu"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"),
    *("INPUT.CROP.SIZE", "[64, 64]", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.MAX_EPOCHS", "0", "SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "2"),
    *("SOLVER.KEEP_CHECKPOINTS", "0", "TEST.EVAL_PERIOD", "0", "TEST.LOSS_IMAGES", "0"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "20"),
    *("DATASETS.CELL.VAL_FRACTION", "0.2"),
]


def arguments(data: Path, output: Path, *more: str) -> list[str]:
    """A command line of train_net.py."""
    options = ["DATASETS.CELL.ROOT", str(data), "OUTPUT_DIR", str(output), *TINY]
    return ["--config-file", str(CONFIG), *more, *options]


def config(data: Path, output: Path, *more: str) -> CfgNode:
    args = default_argument_parser().parse_args([*arguments(data, output), *more])
    cfg = load_config(args.config_file, args.opts)
    register_datasets(cfg)
    return cfg


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write_dataset(folder, SyntheticParameters(train=IMAGES, test=0, size=(64, 80), cells=(8, 12)))
    return folder


# What a rank of two does; each writes what it has seen.


def everything(data: Path, folder: Path) -> None:
    """All that the tests look at, in one job: starting its processes takes longer than the rest."""
    rank = comm.get_rank()
    cfg = config(data, folder / "unused")
    seen: dict[str, Any] = {"positions": positions(cfg), "gradients": compare_gradients(data)}
    for name in ("cells_train", "cells_val"):
        seen[name] = evaluate(cfg, name)
    seen["stopped"] = stop_early(data, folder / "stopped")
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    train_net.main(default_argument_parser().parse_args(arguments(data, folder / "whole")))


def positions(cfg: CfgNode) -> list[list[list[int]]]:
    """The batches of (index, position) that hold the first two epochs of five images."""
    batches = iter(CellTrainer.build_sampler(cfg))
    return [[list(item) for item in next(batches)] for _ in range(5)]


def first_ones(
    labels: torch.Tensor, num_samples: int, positive_fraction: float, background: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """``subsample_labels`` without its random numbers."""
    positive = ((labels != -1) & (labels != background)).nonzero()[:, 0]
    negative = (labels == background).nonzero()[:, 0]
    positive = positive[: int(num_samples * positive_fraction)]
    return positive, negative[: num_samples - len(positive)]


def gradients(model: torch.nn.Module, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Of the sum of the losses, by parameter; and the mean number of sampled proposals."""
    model.train().zero_grad()
    with (
        EventStorage(0) as storage,
        mock.patch.object(rpn, "subsample_labels", first_ones),
        mock.patch.object(roi_heads, "subsample_labels", first_ones),
    ):
        sum(model(batch).values()).backward()
    found = {k.removeprefix("module."): p.grad for k, p in model.named_parameters()}
    for kind in ("fg", "bg"):
        found[kind] = torch.tensor(storage.history(f"roi_head/num_{kind}_samples").latest())
    return {k: v.clone() for k, v in found.items() if v is not None}


def compare_gradients(data: Path) -> dict[str, Any]:
    """Gradients of one iteration, averaged over the ranks, beside those of the whole batch here.

    Norms are over groups: BatchNorm's statistics are those of a process's own share of the batch.
    """
    norms = ("MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", "32")
    cfg = config(data, data.parent / "unused", *norms)
    torch.manual_seed(0)
    model = CellTrainer.build_model(cfg)
    alone = copy.deepcopy(model)
    together = gradients(parallelize(model), next(iter(CellTrainer.build_train_loader(cfg))))
    with mock.patch.object(comm, "get_world_size", lambda: 1):
        with mock.patch.object(comm, "get_rank", lambda: 0):
            batch = next(iter(CellTrainer.build_train_loader(cfg)))
    assert len(batch) == 2
    of_one = gradients(copy.deepcopy(alone), batch)
    of_share = gradients(alone, [batch[comm.get_rank()]])
    assert together.keys() == of_one.keys() == of_share.keys()
    sampled = {k: [g.pop(k).item() for g in (together, of_one)] for k in ("fg", "bg")}
    # A rank without a single cell takes part with the others.
    empty = copy.deepcopy(batch[comm.get_rank()])
    if comm.get_rank() == 1:
        empty["instances"] = empty["instances"][:0]
    partly_empty = gradients(parallelize(copy.deepcopy(model)), [empty])
    return {
        "sampled": sampled,
        "error": largest_difference(together, of_one),
        "difference of the shares": largest_difference(of_share, of_one),
        "finite without cells": all(bool(g.isfinite().all()) for g in partly_empty.values()),
    }


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest norm of a parameter's difference over that of the parameter's gradient."""
    return max(
        ((ours[k] - theirs[k]).norm() / theirs[k].norm().clamp(min=1e-12)).item() for k in theirs
    )


def stop_early(data: Path, output: Path) -> dict[str, Any]:
    """What a rank holds after a training that stops for lack of a better score.

    Every second iteration is evaluated, which takes each rank another time and yields the scores on
    the main one.
    """
    cfg = config(
        *(data, output, "TEST.EVAL_PERIOD", "2", "TEST.EARLY_STOPPING.PATIENCE", "1"),
        *("TEST.EARLY_STOPPING.MIN_GAIN", "100.0", "SOLVER.EMA.ENABLED", "True"),
        *("TEST.LOSS_IMAGES", "1", "TEST.TRAIN_IMAGES", "3"),
    )
    if comm.is_main_process():
        output.mkdir(exist_ok=True)
    trainer = CellTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    digests = [hashlib.sha256() for _ in range(2)]
    for digest, weights in zip(
        digests,
        (trainer._trainer.model.module.state_dict(), trainer.average.weights()),
        strict=True,
    ):
        for value in weights.values():
            digest.update(value.numpy().tobytes())
    return {
        "iterations": trainer.max_iter,
        "weights": [digest.hexdigest() for digest in digests],
        "best": trainer.evaluation.best.state_dict(),
        "results": trainer.evaluation.results,
        "hooks": [type(hook).__name__ for hook in trainer._hooks],
    }


class Recorder(CellEvaluator):
    """Keeps a digest of each image's answer."""

    def __init__(self, name: str) -> None:
        super().__init__(name, max_detections=20)
        self.digests: dict[str, str] = {}

    def process(self, inputs: Any, outputs: Any) -> None:
        super().process(inputs, outputs)
        for item, output in zip(inputs, outputs, strict=True):
            answer = output["instances"]
            assert len(answer) > 0
            whole = [answer.pred_boxes.tensor.tolist(), answer.scores.tolist()]
            text = repr([whole, answer.pred_classes.tolist(), answer.pred_masks.rles])
            assert str(item["image_id"]) not in self.digests
            self.digests[str(item["image_id"])] = hashlib.sha256(text.encode()).hexdigest()


class Noisy(torch.nn.Module):
    """Answers with the annotations, shifted and some left out, so that scores are in between."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.annotations = {d["image_id"]: d["annotations"] for d in DatasetCatalog.get(name)}

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (item,) = inputs
        rng = np.random.default_rng(item["image_id"])
        kept = [a for a in self.annotations[item["image_id"]] if rng.random() < 0.8]
        boxes = torch.tensor([a["bbox"] for a in kept]) + torch.from_numpy(
            rng.normal(0, 1.5, (len(kept), 4))
        )
        size = (item["height"], item["width"])
        answer = Instances(size)
        answer.pred_boxes = Boxes(boxes)
        answer.scores = torch.from_numpy(rng.random(len(kept)))
        answer.pred_classes = torch.tensor([a["category_id"] for a in kept])
        answer.pred_masks = RLEMasks([a["segmentation"] for a in kept], size)
        return [{"instances": answer}]


def evaluate(cfg: CfgNode, name: str) -> dict[str, Any]:
    """Digests of the network's answers, and the scores of those of ``Noisy``."""
    torch.manual_seed(0)
    model, recorder = CellTrainer.build_model(cfg), Recorder(name)
    of_model = inference_on_dataset(model, CellTrainer.build_test_loader(cfg, name), recorder)
    of_noisy = inference_on_dataset(
        Noisy(name),
        CellTrainer.build_test_loader(cfg, name),
        CellTrainer.build_evaluator(cfg, name),
    )
    scores = {"model": of_model, "noisy": of_noisy}
    return {"digests": recorder.digests, "scores": scores}


# What the tests ask.


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory) -> Path:
    """Where two ranks have left what they saw."""
    folder = tmp_path_factory.mktemp("two")
    launch(everything, 2, args=(data, folder), backend="gloo")
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_ranks_share_each_epoch(ranks: list[dict[str, Any]]) -> None:
    assert all(len(batch) == 1 for rank in ranks for batch in rank["positions"])
    drawn = [item for rank in ranks for (item,) in rank["positions"]]
    indices = [index for index, _ in sorted(drawn, key=lambda item: item[1])]
    assert sorted(position for _, position in drawn) == list(range(10))
    assert sorted(indices[:5]) == sorted(indices[5:]) == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_gradients_are_those_of_one_process(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        seen = rank["gradients"]
        # The mask loss is a mean over the foreground: equal numbers make means of means the mean.
        assert seen["sampled"] == {"fg": [2.0, 2.0], "bg": [6.0, 6.0]}
        assert seen["error"] < 1e-5
        assert seen["difference of the shares"] > 0.1, "any half of the batch would have done"
        assert seen["finite without cells"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shares"), [("cells_train", [3, 2]), ("cells_val", [1, 0])])
def test_evaluation_is_that_of_one_process(
    name: str, shares: list[int], ranks: list[dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    expected = json.loads(json.dumps(evaluate(config(data, tmp_path), name)))
    seen = [rank[name]["digests"] for rank in ranks]
    assert [len(digests) for digests in seen] == shares
    assert seen[0] | seen[1] == expected["digests"]
    assert ranks[1][name]["scores"] == {"model": {}, "noisy": {}}
    np.testing.assert_equal(ranks[0][name]["scores"], expected["scores"])
    assert 10 < expected["scores"]["noisy"]["segm"]["AP50"] < 95


@pytest.mark.slow
def test_ranks_agree_on_the_best_model_and_when_to_stop(
    ranks: list[dict[str, Any]], folder: Path
) -> None:
    ours, theirs = (rank["stopped"] for rank in ranks)
    # What only the main one does comes last.
    own = ours.pop("hooks")
    assert own[: len(theirs["hooks"])] == theirs.pop("hooks")
    np.testing.assert_equal(theirs, ours)
    assert ours["iterations"] == 4, "the second evaluation was to be the last"
    assert ours["best"]["iteration"] in (1, 3)
    assert {"segm", "ema/segm", "train/segm"} <= ours["results"].keys()
    assert {"model_best.pth", "model_final.pth"} <= {p.name for p in (folder / "stopped").iterdir()}


def worker_processes(launcher: int) -> dict[int, int]:
    """Process ids of a launcher's ranks, in the order they were started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    return dict(enumerate(sorted(int(child) for child in ranks)))


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_bit(
    folder: Path, data: Path, repository: Path, tmp_path: Path, capsys
) -> None:
    command = [sys.executable, "train_net.py", *arguments(data, tmp_path, "--num-gpus", "2")]
    started = subprocess.Popen(command, cwd=repository, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "last_checkpoint").exists():
        assert started.poll() is None
        time.sleep(0.02)
    os.kill(worker_processes(started.pid)[1], signal.SIGKILL)
    _, error = started.communicate(timeout=60)
    assert started.returncode == 1
    assert "error: the process of rank 1 was killed by SIGKILL" in error
    assert not (tmp_path / "model_final.pth").exists()

    refused = train_net.run(arguments(data, tmp_path))
    assert refused == 1 and "add --resume" in capsys.readouterr().err

    resumed = subprocess.run(
        [*command[:2], *arguments(data, tmp_path, "--num-gpus", "2", "--resume")],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert any(line.startswith("segm AP50: ") for line in resumed.stdout.splitlines()[-10:])
    assert "2 processes, 2 of them on this machine, over gloo; each on the CPU" in resumed.stdout
    ours, theirs = (torch.load(f / "model_final.pth") for f in (tmp_path, folder / "whole"))
    assert ours["iteration"] == theirs["iteration"] == 7
    for key, value in theirs["model"].items():
        assert torch.equal(value, ours["model"][key]), key
    scores = [json.loads((f / "scores.json").read_text()) for f in (tmp_path, folder / "whole")]
    np.testing.assert_equal(scores[0], scores[1])
    assert (tmp_path / "log.txt.rank1").exists()
    sessions = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert [s["environment"]["processes"] for s in sessions] == [2, 2]


@pytest.mark.slow
def test_a_broken_file_is_named_once(data: Path, tmp_path: Path, capfd) -> None:
    root = tmp_path / "data"
    shutil.copytree(data, root)
    cut = sorted((root / "train").glob("*/image.tif"))[0]
    # Sound in its header, which is all that parsing reads, and cut in its pixels.
    cut.write_bytes(cut.read_bytes()[:-200])
    every = ("DATASETS.TRAIN", "('cells_trainval',)")
    status = train_net.run([*arguments(root, tmp_path / "run", "--num-gpus", "2"), *every])
    error = capfd.readouterr().err
    assert status == 1, error
    assert error.count("error: ") == 1 and error.count(f"{cut}: found") == 1
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused_once(data: Path, tmp_path: Path, capfd) -> None:
    three = ("SOLVER.IMS_PER_BATCH", "3")
    status = train_net.run([*arguments(data, tmp_path / "run", "--num-gpus", "2"), *three])
    error = capfd.readouterr().err
    assert status == 2, error
    assert error.count("error: ") == 1 and "multiple of the number of processes, 2" in error
    assert "Traceback" not in error
