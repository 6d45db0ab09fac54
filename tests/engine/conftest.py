"""A detector that costs nothing, in runs of the real trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from cellseg_d2 import load_config
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset
from cellseg_d2.engine import CellTrainer, register_datasets


@META_ARCH_REGISTRY.register()
class TinyDetector(nn.Module):
    """Losses that depend on pixels, instances, BatchNorm, dropout and a draw; detects nothing."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.seen: list[str] = []

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        if not self.training:
            return [{"instances": _nothing(item)} for item in batch]
        self.seen += [item["file_name"] for item in batch]
        means = torch.stack(
            [
                self.frozen(self.features(i["image"][None].float() / 255)).mean((0, 2, 3))
                for i in batch
            ]
        )
        count = sum(len(item["instances"]) for item in batch)
        get_event_storage().put_scalar("tiny/instances", count)
        return {"loss_cls": (means**2).sum(), "loss_mask": (means * torch.rand(4)).sum().abs()}


def _nothing(item: dict[str, Any]) -> Instances:
    return Instances(
        (item["height"], item["width"]),
        pred_boxes=Boxes(torch.zeros(0, 4)),
        scores=torch.zeros(0),
        pred_classes=torch.zeros(0, dtype=torch.int64),
    )


@pytest.fixture(scope="session")
def cells(tmp_path_factory) -> Path:
    """Six small annotated images."""
    folder = tmp_path_factory.mktemp("cells")
    write_dataset(folder, SyntheticParameters(train=6, test=0, size=(48, 56), cells=(3, 6)))
    return folder


TinyConfig = Callable[..., CfgNode]


@pytest.fixture
def tiny(cells: Path, tmp_path: Path, repository: Path, monkeypatch) -> TinyConfig:
    """Make a config of six iterations, evaluated and saved every second one, without curves."""
    monkeypatch.setattr("cellseg_d2.engine.curve_hook.plot_metrics", lambda *_: None)

    def make(*options: object, output: str = "run") -> CfgNode:
        cfg = load_config(
            repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml",
            [
                *("DATASETS.CELL.ROOT", str(cells), "OUTPUT_DIR", str(tmp_path / output)),
                *("DATASETS.CELL.VAL_FRACTION", 0.34, "INPUT.CROP.SIZE", [32, 32]),
                *("MODEL.META_ARCHITECTURE", "TinyDetector", "DATALOADER.NUM_WORKERS", 0),
                *("SOLVER.MAX_EPOCHS", 0, "SOLVER.WARMUP_ITERS", 1, "SOLVER.BASE_LR", 0.01),
                *("MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", False),
            ],
        )
        cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = 6, 2, 2
        cfg.merge_from_list(list(options))
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        register_datasets(cfg)
        return cfg

    return make


@pytest.fixture(scope="session")
def scored() -> Callable[..., type[CellTrainer]]:
    """Make a trainer whose evaluations give the listed values of segm/AP50, from the first on.

    The list is by evaluation, counted in iterations: a resumed run gets those that are left.
    """

    def make(values: list[float]) -> type[CellTrainer]:
        class Scored(CellTrainer):
            def test(self, cfg: CfgNode, model: nn.Module) -> dict[str, dict[str, float]]:
                evaluation = (self.iter + 1) // cfg.TEST.EVAL_PERIOD - 1
                return {"segm": {"AP50": values[evaluation]}}

        return Scored

    return make


def run(cfg: CfgNode, kind: type[CellTrainer] = CellTrainer, resume: bool = False) -> CellTrainer:
    torch.manual_seed(0)
    trainer = kind(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


@pytest.fixture(scope="session")
def train() -> Callable[..., CellTrainer]:
    """Run a config from weights by a fixed seed: ``train(cfg, kind, resume)``."""
    return run


def equal(a: Any, b: Any) -> bool:
    """Compare nested containers of tensors and numbers to the bit; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)


@pytest.fixture(scope="session")
def same() -> Callable[[Any, Any], bool]:
    """See ``equal``."""
    return equal
