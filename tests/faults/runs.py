"""Runs that faults are put into, and what they say and leave."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import train_net

CONFIG = Path(__file__).resolve().parent.parent.parent / "configs" / "mask_rcnn_R_18_FPN_small.yaml"
TINY = [
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "20"),
    *("MODEL.DEVICE", "cpu", "INPUT.CELL.CHANNEL_ORDER", "BGR", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.CROP.SIZE", "[48, 48]", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_EPOCHS", "0"),
    *("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "DATASETS.TEST", "()"),
]
FILES = ["--labels", "--geojson", "--csv", "--overlay", "--score-threshold", "0"]


def train(data: Path, output: Path, *options: str) -> int:
    common = ["DATASETS.CELL.ROOT", str(data), "OUTPUT_DIR", str(output), *TINY]
    return train_net.run(["--config-file", str(CONFIG), "--resume", *common, *options])


def assert_same_training(folder: Path, trained: Path) -> None:
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    weights = [torch.load(path / "model_final.pth")["model"] for path in (folder, trained)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not list(folder.rglob("*.part"))


Predict = Callable[..., int]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def last_line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to let any file grow beyond a size, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
