"""CBAM against the paper's equations in loops, and the ResNet around it against Detectron2's."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone, build_resnet_backbone

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.modeling.backbone import CBAM, CBAMResNet

IMAGE = ShapeSpec(channels=3)
STAGES = ("res2", "res3", "res4", "res5")
MODELS = {
    "R18": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
    "R50": {"DEPTH": 50},
    "X50": {"DEPTH": 50, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4},
}


def config(model: str = "R18", *options: object, fpn: bool = False) -> CfgNode:
    name = "build_cbam_resnet_fpn_backbone" if fpn else "build_cbam_resnet_backbone"
    values: list[object] = ["MODEL.BACKBONE.NAME", name, "MODEL.RESNETS.NORM", "BN"]
    # Without weights nothing would be frozen; they are named here, not read.
    values += ["MODEL.WEIGHTS", "weights/any.pkl"]
    values += ["MODEL.RESNETS.OUT_FEATURES", list(STAGES), "MODEL.FPN.IN_FEATURES", list(STAGES)]
    for key, value in MODELS[model].items():
        values += [f"MODEL.RESNETS.{key}", value]
    return load_config(options=[*values, *options])


def sigmoid(x: np.ndarray | float) -> np.ndarray | float:
    return 1 / (1 + np.exp(-x))


def cbam_in_loops(x: np.ndarray, w0: np.ndarray, w1: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Equations 1 to 3 of the paper for one image x (C, H, W), one number at a time."""
    channels, height, width = x.shape
    side = kernel.shape[-1]

    def mlp(descriptor: list[float]) -> list[float]:
        hidden = [max(0.0, sum(w * d for w, d in zip(row, descriptor, strict=True))) for row in w0]
        return [sum(w * h for w, h in zip(row, hidden, strict=True)) for row in w1]

    pixels = height * width
    average = mlp([sum(x[c].ravel()) / pixels for c in range(channels)])
    maximum = mlp([max(x[c].ravel()) for c in range(channels)])
    refined = np.zeros_like(x)
    for c in range(channels):
        refined[c] = x[c] * sigmoid(average[c] + maximum[c])
    answer = np.zeros_like(x)
    for i in range(height):
        for j in range(width):
            logit = 0.0
            for di in range(side):
                for dj in range(side):
                    u, v = i + di - side // 2, j + dj - side // 2
                    if 0 <= u < height and 0 <= v < width:
                        logit += kernel[0, di, dj] * sum(refined[:, u, v]) / channels
                        logit += kernel[1, di, dj] * max(refined[:, u, v])
            answer[:, i, j] = refined[:, i, j] * sigmoid(logit)
    return answer


@pytest.mark.parametrize(("reduction", "kernel_size"), [(4, 7), (2, 3), (8, 1)])
def test_equals_the_papers_equations(reduction: int, kernel_size: int) -> None:
    torch.manual_seed(0)
    module = CBAM(8, reduction, kernel_size).double()
    x = torch.randn(2, 8, 6, 9, dtype=torch.float64)
    ours = module(x).detach().numpy()
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    assert set(weights) == {"channel.mlp.0.weight", "channel.mlp.2.weight", "spatial.conv.weight"}
    for image, answer in zip(x.numpy(), ours, strict=True):
        expected = cbam_in_loops(
            image,
            weights["channel.mlp.0.weight"],
            weights["channel.mlp.2.weight"],
            weights["spatial.conv.weight"][0],
        )
        np.testing.assert_allclose(answer, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("model", MODELS)
def test_shapes_strides_and_names_are_resnets(model: str) -> None:
    cfg = config(model)
    with torch.device("meta"):
        ours, theirs = build_backbone(cfg), build_resnet_backbone(cfg, IMAGE)
        features = ours(torch.zeros(2, 3, 64, 96))
    assert isinstance(ours, CBAMResNet)
    assert ours.output_shape() == theirs.output_shape()
    for name, shape in theirs.output_shape().items():
        assert features[name].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
    added = {
        f"cbam_{stage}.{weight}"
        for stage in STAGES
        for weight in ("channel.mlp.0.weight", "channel.mlp.2.weight", "spatial.conv.weight")
    }
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert set(shapes) == set(theirs.state_dict()) | added
    assert all(shapes[name] == value.shape for name, value in theirs.state_dict().items())
    parameters = sum(p.numel() for p in ours.parameters())
    of_cbam = sum(2 * s.channels * (s.channels // 16) + 98 for s in theirs.output_shape().values())
    assert parameters == sum(p.numel() for p in theirs.parameters()) + of_cbam


@pytest.mark.parametrize("depth", [34, 101, 152])
def test_other_depths(depth: int) -> None:
    width = 64 if depth == 34 else 256
    options = ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", width]
    with torch.device("meta"):
        backbone = build_backbone(config("R18", *options))
    assert backbone.output_shape()["res5"].channels == 8 * width
    blocks = {34: 16, 101: 33, 152: 50}[depth]
    assert sum(len(stage) for stage in backbone.stages) == blocks


@torch.no_grad()
def test_attention_follows_the_stage_and_feeds_the_next() -> None:
    torch.manual_seed(0)
    cfg = config("R18", "MODEL.CBAM.STAGES", ["res3"])
    ours = build_backbone(cfg).eval()
    x = torch.randn(1, 3, 64, 64)
    features = ours(x)
    before = ours.res3(ours.res2(ours.stem(x)))
    expected = ours.cbam_res3(before)
    assert torch.equal(features["res2"], ours.res2(ours.stem(x)))
    assert torch.equal(features["res3"], expected) and not torch.equal(expected, before)
    assert torch.equal(features["res5"], ours.res5(ours.res4(expected)))


@torch.no_grad()
def test_without_stages_it_is_detectron2s_resnet() -> None:
    cfg = config("R18", "MODEL.CBAM.STAGES", [])
    ours, theirs = build_backbone(cfg).eval(), build_resnet_backbone(cfg, IMAGE).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 64, 64)
    expected = theirs(x)
    assert all(torch.equal(feature, expected[name]) for name, feature in ours(x).items())


def test_gradients_reach_attention_behind_frozen_stages() -> None:
    backbone = build_backbone(config("R18", "MODEL.BACKBONE.FREEZE_AT", 2))
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {
        name for name, _ in backbone.named_parameters() if name.startswith(("stem.", "res2."))
    }
    assert any(isinstance(module, FrozenBatchNorm2d) for module in backbone.res2.modules())
    sum(
        feature.square().mean() for feature in backbone(torch.randn(1, 3, 64, 64)).values()
    ).backward()
    for stage in STAGES:
        for name, parameter in getattr(backbone, f"cbam_{stage}").named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, (stage, name)


def test_all_stages_can_be_frozen_but_attention_trains() -> None:
    backbone = build_backbone(config("R18", "MODEL.BACKBONE.FREEZE_AT", 5))
    trained = {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {f"cbam_{stage}" for stage in STAGES}


def test_imagenet_weights_load_with_only_cbam_missing(tmp_path: Path) -> None:
    """The way of Detectron2's own ImageNet files: bare names, matched by their endings."""
    cfg = config()
    plain = build_resnet_backbone(cfg, IMAGE)
    path = tmp_path / "R-18.pkl"
    weights = {name: value.numpy() for name, value in plain.state_dict().items()}
    saved = {"model": weights, "__author__": "a test", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(saved))
    ours = torch.nn.Module()
    ours.backbone = build_backbone(cfg)
    checkpointer = DetectionCheckpointer(ours)
    incompatible = checkpointer._load_model(checkpointer._load_file(str(path)))
    assert set(incompatible.missing_keys) == {
        name for name in ours.state_dict() if name.startswith("backbone.cbam_")
    }
    assert not incompatible.unexpected_keys and not incompatible.incorrect_shapes
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[f"backbone.{name}"], value), name


def test_fpn() -> None:
    cfg = config("R18", "MODEL.FPN.OUT_CHANNELS", 16, fpn=True)
    backbone = build_backbone(cfg)
    features = backbone(torch.randn(1, 3, 64, 128))
    sizes = {name: tuple(feature.shape) for name, feature in features.items()}
    assert sizes == {
        "p2": (1, 16, 16, 32),
        "p3": (1, 16, 8, 16),
        "p4": (1, 16, 4, 8),
        "p5": (1, 16, 2, 4),
        "p6": (1, 16, 1, 2),
    }
    assert backbone.output_shape()["p6"].stride == 64
    assert isinstance(backbone.bottom_up, CBAMResNet)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.CBAM.STAGES", ["res2", "layer3"]], "names 'layer3'.*res2, res3, res4, res5"),
        (["MODEL.RESNETS.OUT_FEATURES", ["res4"]], "names 'res5'.*res2, res3, res4 "),
        (["MODEL.CBAM.REDUCTION", 65], "REDUCTION is 65; res2 has 64"),
        (["MODEL.CBAM.REDUCTION", 0], "REDUCTION is 0"),
        (["MODEL.CBAM.KERNEL_SIZE", 6], "KERNEL_SIZE is 6"),
    ],
)
def test_values_that_fit_no_resnet_are_refused(options: list, message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build_backbone(config("R18", *options))
