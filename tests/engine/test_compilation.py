"""A compiled backbone against the same one, not compiled."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.engine.compilation import compile_backbone
from cellseg_d2.modeling.backbone import ConvNeXtBackbone


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Backbone(nn.Sequential):
    """Not PyTorch's own class, whose code ``torch.compile`` passes over."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image) * 2


class Detector(nn.Module):
    """A backbone that a head may hook, as the centre and boundary head does."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())


def frames() -> int:
    """How many functions have been compiled since the process started."""
    return torch._dynamo.utils.counters["frames"]["ok"]


def test_compiled_or_not_features_gradients_and_names_are_the_same() -> None:
    torch.manual_seed(0)
    plain = Detector()
    compiled = copy.deepcopy(plain)
    compile_backbone(compiled, "aot_eager")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    before = frames()
    for size in ((16, 24), (24, 16), (40, 8)):
        image = torch.randn(2, 3, *size)
        expected, got = plain.backbone(image), compiled.backbone(image)
        assert torch.equal(got, expected)
        for features in (expected, got):
            features.square().sum().backward()
        for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)
        assert frames() == before + 1, "compiled once, for all sizes"


@pytest.mark.slow
def test_convnext_with_checkpointing() -> None:
    torch.manual_seed(0)
    network = models.ConvNeXt([CNBlockConfig(4, None, 2)], 0.0, num_classes=2)
    plain = nn.Module()
    plain.backbone = ConvNeXtBackbone(network.features, ["res2"], 0, checkpointing=True)
    compiled = copy.deepcopy(plain)
    compile_backbone(compiled, "aot_eager")
    before, image = frames(), torch.randn(1, 3, 16, 16)
    for model in (plain, compiled):
        sum(x.square().sum() for x in model.backbone(image).values()).backward()
    assert frames() > before
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_copy_or_a_saved_model_computes_with_its_own_weights() -> None:
    model = Detector()
    compile_backbone(model, "aot_eager")
    before, image = frames(), torch.randn(1, 3, 8, 8)
    model.backbone(image)
    assert frames() > before
    other = copy.deepcopy(model)
    nn.init.zeros_(other.backbone[0].weight)
    assert not torch.equal(other.backbone(image), model.backbone(image))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    Detector().load_state_dict(torch.load(file))


@pytest.mark.slow
def test_a_detectors_fpn_is_the_same(repository: Path) -> None:
    config = repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml"
    plain = build_model(load_config(config, ["MODEL.DEVICE", "cpu"])).train()
    compiled = copy.deepcopy(plain)
    compile_backbone(compiled, "eager")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    before, image = frames(), torch.randn(1, 3, 64, 96)
    expected, got = plain.backbone(image), compiled.backbone(image)
    assert frames() > before
    for name, features in expected.items():
        assert torch.equal(got[name], features)
    assert compiled.backbone.size_divisibility == plain.backbone.size_divisibility


def test_no_compiler_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(*_, **__):
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", none_here)
    model = Detector()
    with pytest.raises(ConfigError, match=r"SOLVER.COMPILE is on.*\(No working C\+\+ comp.*False"):
        compile_backbone(model)
    assert model.backbone._compiled_call_impl is None
