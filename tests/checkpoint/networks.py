"""Networks of random weights, and their files converted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from cellseg_d2 import load_config
from cellseg_d2.checkpoint import CellCheckpointer
from cellseg_d2.checkpoint.convert import convert_file

CLASSES = 4


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms random weights and statistics, and layer scales a size that shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        kind = name.rpartition(".")[2]
        if value.ndim <= 1 and kind in ("weight", "running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif kind in ("running_mean", "bias"):
            value.normal_(0, 0.1, generator=generator)
        elif kind in ("layer_scale", "gamma"):
            value.uniform_(0.1, 0.5, generator=generator)
    return model.eval()


def converted(model: nn.Module, folder: Path, **options: object) -> str:
    torch.save(model.state_dict(), folder / "source.pth")
    convert_file(folder / "source.pth", folder / "target.pkl", **options)
    return str(folder / "target.pkl")


def load_backbone(weights: str, *options: object) -> nn.Module:
    cfg = load_config(options=["MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu", *options])
    holder = nn.Module()
    holder.backbone = build_backbone(cfg, ShapeSpec(channels=3))
    CellCheckpointer(holder).load(weights, checkpointables=[])
    return holder.backbone.eval()


def image(*size: int) -> torch.Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.std()))


def resnet_features(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    outputs = {}
    for k in range(1, 5):
        outputs[f"res{k + 1}"] = x = getattr(model, f"layer{k}")(x)
    return outputs


RESNETS: list[tuple[Callable[..., nn.Module], list[object]]] = [
    (
        torchvision.models.resnet18,
        ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64],
    ),
    (torchvision.models.resnet50, []),
    (
        torchvision.models.resnext50_32x4d,
        ["MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 4],
    ),
]


RESNET_OPTIONS = [
    *("MODEL.RESNETS.STRIDE_IN_1X1", False),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
]
