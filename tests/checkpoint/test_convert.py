"""Converted weights give what the source's own model gives: features, boxes, scores and masks.

The models are torchvision's, with random weights and random BatchNorm statistics, and ConvNeXt as
its paper and checkpoints have it, written out below.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2.modeling import build_model
from torch import nn
from torchvision.models import detection

from cellseg_d2 import CellDataError, load_config
from cellseg_d2.checkpoint import CellCheckpointer, load_arrays
from cellseg_d2.checkpoint.convert import convert_file, convert_weights, report

from .networks import (
    RESNET_OPTIONS,
    RESNETS,
    assert_close,
    converted,
    image,
    load_backbone,
    randomize,
    resnet_features,
)


@pytest.mark.parametrize(
    ("build", "options"),
    [*RESNETS, (RESNETS[0][0], [*RESNETS[0][1], "MODEL.RESNETS.NORM", "BN"])],
    ids=["R18", "R50", "ResNeXt50", "R18 of BatchNorm"],
)
def test_resnet_features(build, options: list, tmp_path: Path) -> None:
    model = randomize(build())
    options = [*options, *RESNET_OPTIONS]
    options += ["MODEL.BACKBONE.NAME", "build_resnet_backbone"]
    ours = load_backbone(converted(model, tmp_path), *options)
    with torch.no_grad():
        expected, found = resnet_features(model, image(64, 96)), ours(image(64, 96))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value)


@pytest.mark.parametrize(
    "name",
    ["build_resnet_fpn_backbone", "build_cbam_resnet_backbone", "build_cbam_resnet_fpn_backbone"],
)
def test_one_file_fits_backbones_with_attention_and_under_an_fpn(name: str, tmp_path: Path) -> None:
    model = randomize(torchvision.models.resnet18())
    options = [*RESNETS[0][1], *RESNET_OPTIONS, "MODEL.BACKBONE.NAME", name]
    options += ["MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]]
    backbone = load_backbone(converted(model, tmp_path), *options)
    body = backbone.bottom_up if "fpn" in name else backbone
    with torch.no_grad():
        x, expected = body.stem(image(64, 64)), resnet_features(model, image(64, 64))
        for stage, value in expected.items():
            x = getattr(body, stage)(x)
            assert_close(x, value)


def test_one_file_fits_c4_whose_last_stage_is_in_its_head(repository: Path, tmp_path: Path) -> None:
    weights = converted(randomize(torchvision.models.resnet50()), tmp_path)
    path = repository / "configs" / "report4_R_50_C4.yaml"
    cfg = load_config(path, ["MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    CellCheckpointer(model).load(weights, checkpointables=[])
    source = torch.load(tmp_path / "source.pth")
    assert torch.equal(model.roi_heads.res5[1].conv2.weight, source["layer4.1.conv2.weight"])
    assert torch.equal(
        model.backbone.res3[0].shortcut.weight, source["layer2.0.downsample.0.weight"]
    )


def convnext_features(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs = {}
    for index, module in enumerate(model.features):
        x = module(x)
        if index % 2:
            outputs[f"res{index // 2 + 2}"] = x
    return outputs


def assert_convnext(weights: str, features: Callable[[torch.Tensor], dict]) -> None:
    for name in ("build_convnext_backbone", "build_convnext_fpn_backbone"):
        options = ["MODEL.CONVNEXT.SIZE", "tiny", "MODEL.BACKBONE.NAME", name]
        options += ["MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]]
        backbone = load_backbone(weights, *options)
        body = backbone.bottom_up if "fpn" in name else backbone
        with torch.no_grad():
            expected, found = features(image(64, 96)), convnext_features(body, image(64, 96))
        assert found.keys() == expected.keys()
        for stage, value in expected.items():
            assert_close(found[stage], value)


def test_convnext_features(tmp_path: Path) -> None:
    model = randomize(torchvision.models.convnext_tiny())
    assert_convnext(converted(model, tmp_path), lambda x: convnext_features(model, x))


class LayerNormFirst(nn.LayerNorm):
    """LayerNorm over channels of (N, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class OriginalBlock(nn.Module):
    """A ConvNeXt block by the paper's figure 4, with the names of the authors' checkpoints."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class OriginalConvNeXt(nn.Module):
    """ConvNeXt-T, with the names of the authors' checkpoints."""

    def __init__(self, dims: tuple[int, ...] = (96, 192, 384, 768)) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), LayerNormFirst(dims[0], eps=1e-6))
        self.downsample_layers = nn.ModuleList([stem])
        for a, b in zip(dims, dims[1:], strict=False):
            layer = nn.Sequential(LayerNormFirst(a, eps=1e-6), nn.Conv2d(a, b, 2, 2))
            self.downsample_layers.append(layer)
        self.stages = nn.ModuleList(
            nn.Sequential(*(OriginalBlock(dim) for _ in range(depth)))
            for dim, depth in zip(dims, (3, 3, 9, 3), strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], 1000)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = {}
        for k, (layer, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            outputs[f"res{k + 2}"] = x = stage(layer(x))
        return outputs


def test_features_of_the_original_convnext(tmp_path: Path) -> None:
    model = randomize(OriginalConvNeXt())
    torch.save({"model": model.state_dict()}, tmp_path / "source.pth")
    conversion = convert_file(tmp_path / "source.pth", tmp_path / "target.pkl")
    assert conversion.kind == "convnext-original"
    assert sorted(conversion.left) == ["head.bias", "head.weight", "norm.bias", "norm.weight"]
    assert_convnext(str(tmp_path / "target.pkl"), model)


# Reports and refusals
def test_report_names_what_was_renamed_and_left() -> None:
    model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    conversion = convert_weights(model.state_dict())
    text = report(conversion)
    counted = len(conversion.names) + len(conversion.left)
    assert counted == len(model.state_dict()) and f"{counted} arrays" in text
    assert "backbone.body.layer*.*.conv* -> backbone.bottom_up.res*.*.conv* (48)" in text
    assert "backbone.body.layer*.*.bn*.num_batches_tracked (48)" in text
    assert "STRIDE_IN_1X1 False" in text
    assert "rearranged" in text and "  roi_heads.box_predictor.cls_score (2)" in text


def test_data_parallel_prefix_and_checkpoints_are_unwrapped(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    wrapped = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "a.pth")
    conversion = convert_file(tmp_path / "a.pth", tmp_path / "a.pkl")
    assert conversion.weights.keys() == convert_weights(state).weights.keys()
    written = load_arrays(tmp_path / "a.pkl")
    assert written["__author__"] == "torchvision" and written["matching_heuristics"] is True


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda s: {"a.weight": s["conv1.weight"]}, "auto", "no known model.*a.weight"),
        (lambda s: s | {"layer1.0.se.fc1.weight": s["conv1.weight"]}, "auto", "1 param.*se.fc1"),
        (lambda s: s, "convnext", "122 parameters that kind convnext does not know"),
        (lambda s: {"conv1.weight": 3}, "auto", "int under 'conv1.weight'"),
        (lambda s: [], "auto", "found a list"),
    ],
)
def test_other_models_are_refused_and_nothing_is_written(change, kind, message, tmp_path) -> None:
    torch.save(change(torchvision.models.resnet18().state_dict()), tmp_path / "a.pth")
    with pytest.raises(CellDataError, match=f"a.pth: .*{message}"):
        convert_file(tmp_path / "a.pth", tmp_path / "a.pkl", kind)
    assert not list(tmp_path.glob("a.pkl*"))
