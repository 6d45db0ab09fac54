"""ConvNeXt's features and parameters against torchvision's own network."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlock, CNBlockConfig
from torchvision.ops import StochasticDepth

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.modeling.backbone import ConvNeXtBackbone, build_convnext_backbone

NAMES = ["res2", "res3", "res4", "res5"]
IMAGE = ShapeSpec(channels=3)


def network(stochastic_depth: float = 0.0) -> models.ConvNeXt:
    """A ConvNeXt of 2, 1, 4 and 1 blocks whose blocks, layer scale 1, change what they pass."""
    settings = [
        CNBlockConfig(8, 16, 2),
        CNBlockConfig(16, 24, 1),
        CNBlockConfig(24, 32, 4),
        CNBlockConfig(32, None, 1),
    ]
    torch.manual_seed(0)
    return models.ConvNeXt(settings, stochastic_depth, layer_scale=1.0, num_classes=2)


def config(*options: object):
    cfg = load_config(options=options)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return cfg


def without_output_norms(backbone: ConvNeXtBackbone) -> ConvNeXtBackbone:
    for name in NAMES:
        setattr(backbone, f"norm_{name}", nn.Identity())
    return backbone


def stages_of(torchvision_model: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        name: torchvision_model.features[: 2 * index + 2](image) for index, name in enumerate(NAMES)
    }


@pytest.mark.parametrize("training", [False, True])
def test_features_are_torchvisions_to_the_bit_before_the_output_norms(training: bool) -> None:
    theirs = network().train(training)
    ours = without_output_norms(ConvNeXtBackbone(theirs.features, NAMES)).train(training)
    image = torch.randn(2, 3, 64, 96)
    expected = stages_of(theirs, image)
    got = ours(image)
    assert list(got) == NAMES
    for name in NAMES:
        assert torch.equal(got[name], expected[name])
        assert not torch.equal(got[name], torch.zeros_like(got[name]))


def test_the_built_model_computes_what_torchvisions_does_with_its_weights() -> None:
    torch.manual_seed(0)
    theirs = models.convnext_tiny(weights=None).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("layer_scale"):
                parameter.fill_(0.5)
    ours = build_convnext_backbone(config("MODEL.CONVNEXT.SIZE", "tiny"), IMAGE).eval()
    answer = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert {key.split(".")[0] for key in answer.missing_keys} == {f"norm_{n}" for n in NAMES}
    assert {key.split(".")[0] for key in answer.unexpected_keys} == {"classifier"}
    image = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        expected, got = stages_of(theirs, image), without_output_norms(ours)(image)
    for name in NAMES:
        assert torch.equal(got[name], expected[name])


def test_output_norms_are_layer_norms_over_channels() -> None:
    backbone = ConvNeXtBackbone(network().features, NAMES)
    image = torch.randn(2, 3, 64, 64)
    torch.manual_seed(1)
    for name in NAMES:
        nn.init.normal_(getattr(backbone, f"norm_{name}").weight)
        nn.init.normal_(getattr(backbone, f"norm_{name}").bias)
    with torch.no_grad():
        outputs, raw = backbone(image), stages_of(backbone, image)
    for name in NAMES:
        norm, x = getattr(backbone, f"norm_{name}"), raw[name]
        deviation = (x.var(dim=1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        expected = (x - x.mean(dim=1, keepdim=True)) / deviation
        expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
        assert torch.allclose(outputs[name], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "millions", "channels"),
    [
        ("tiny", 29, [96, 192, 384, 768]),
        ("small", 50, [96, 192, 384, 768]),
        ("base", 89, [128, 256, 512, 1024]),
        ("large", 198, [192, 384, 768, 1536]),
    ],
)
def test_parameters_are_torchvisions_without_classifier_and_output_norms(
    size: str, millions: int, channels: list[int]
) -> None:
    with torch.device("meta"):
        theirs = getattr(models, f"convnext_{size}")(weights=None)
        ours = build_convnext_backbone(config("MODEL.CONVNEXT.SIZE", size), IMAGE)
    published = sum(p.numel() for p in theirs.parameters())
    assert round(published / 1e6) == millions
    classifier = sum(p.numel() for p in theirs.classifier.parameters())
    count = sum(p.numel() for p in ours.parameters())
    assert count == published - classifier + 2 * sum(channels)
    shapes = ours.output_shape()
    assert [shapes[name].channels for name in NAMES] == channels
    assert [shapes[name].stride for name in NAMES] == [4, 8, 16, 32]
    assert ours.size_divisibility == 32


def test_pico_is_the_published_network_of_9_05_million_parameters() -> None:
    with torch.device("meta"):
        ours = build_convnext_backbone(config("MODEL.CONVNEXT.SIZE", "pico"), IMAGE)
    widths = [64, 128, 256, 512]
    assert [ours.output_shape()[name].channels for name in NAMES] == widths
    blocks = [sum(isinstance(m, CNBlock) for m in ours.features[k].modules()) for k in (1, 3, 5, 7)]
    assert blocks == [2, 2, 6, 2]
    count = sum(p.numel() for p in ours.parameters())
    classifier = 2 * widths[-1] + 1000 * (widths[-1] + 1)
    # As Wightman's timm counts its convnext_pico.
    assert round((count - 2 * sum(widths) + classifier) / 1e6, 2) == 9.05


def test_base_has_the_papers_88_6_million_parameters() -> None:
    with torch.device("meta"):
        ours = build_convnext_backbone(config("MODEL.CONVNEXT.SIZE", "base"), IMAGE)
    norms, classifier = 2 * (128 + 256 + 512 + 1024), 2 * 1024 + 1000 * (1024 + 1)
    count = sum(p.numel() for p in ours.parameters())
    assert count - norms + classifier == 88_591_464


def skip_rates(backbone: nn.Module) -> list[float]:
    return [module.p for module in backbone.modules() if isinstance(module, StochasticDepth)]


@pytest.mark.parametrize(
    ("size", "last"), [("tiny", 0.1), ("small", 0.4), ("base", 0.5), ("large", 0.5)]
)
def test_stochastic_depth_is_the_papers_unless_given(size: str, last: float) -> None:
    with torch.device("meta"):
        papers = build_convnext_backbone(config("MODEL.CONVNEXT.SIZE", size), IMAGE)
    rates = skip_rates(papers)
    assert rates == pytest.approx([last * i / (len(rates) - 1) for i in range(len(rates))])


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_stochastic_depth_can_be_given(rate: float) -> None:
    options = ["MODEL.CONVNEXT.SIZE", "tiny", "MODEL.CONVNEXT.STOCHASTIC_DEPTH", rate]
    with torch.device("meta"):
        rates = skip_rates(build_convnext_backbone(config(*options), IMAGE))
    assert rates == pytest.approx([rate * i / 17 for i in range(18)])


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [
        (0, []),
        (1, ["0"]),
        (2, ["0", "1"]),
        (3, ["0", "1", "2", "3"]),
        (4, ["0", "1", "2", "3", "4", "5"]),
        (5, ["0", "1", "2", "3", "4", "5", "6", "7"]),
    ],
)
def test_freezing_takes_the_stem_then_stages_and_never_output_norms(
    freeze_at: int, frozen: list[str]
) -> None:
    backbone = ConvNeXtBackbone(network(0.5).features, NAMES, freeze_at)
    for name, parameter in backbone.named_parameters():
        expected = name.startswith("norm_") or name.split(".")[1] not in frozen
        assert parameter.requires_grad is expected, name


def test_frozen_features_do_not_vary_in_training() -> None:
    backbone = ConvNeXtBackbone(network(0.5).features, NAMES, freeze_at=4).train()
    image = torch.randn(1, 3, 64, 64)
    torch.manual_seed(0)
    runs = [backbone(image) for _ in range(8)]
    for name in NAMES[:3]:
        assert all(torch.equal(runs[0][name], run[name]) for run in runs)
    assert not all(torch.equal(runs[0]["res5"], run["res5"]) for run in runs)


def test_stages_behind_the_last_output_are_left_out() -> None:
    backbone = ConvNeXtBackbone(network().features, ["res4", "res2"])
    assert list(backbone.output_shape()) == ["res2", "res4"]
    assert len(backbone.features) == 6 and backbone.size_divisibility == 16
    outputs = backbone(torch.randn(1, 3, 32, 32))
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        "res2": (1, 8, 8, 8),
        "res4": (1, 24, 2, 2),
    }
    sum(x.square().sum() for x in outputs.values()).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_the_fpn_gives_out_p2_to_p6_and_every_parameter_learns() -> None:
    options = ["MODEL.CONVNEXT.SIZE", "tiny", "MODEL.FPN.OUT_CHANNELS", 16]
    cfg = config(*options, "MODEL.FPN.IN_FEATURES", NAMES)
    fpn = BACKBONE_REGISTRY.get("build_convnext_fpn_backbone")(cfg, IMAGE)
    assert fpn.size_divisibility == 32
    outputs = fpn(torch.randn(1, 3, 64, 96))
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        "p2": (1, 16, 16, 24),
        "p3": (1, 16, 8, 12),
        "p4": (1, 16, 4, 6),
        "p5": (1, 16, 2, 3),
        "p6": (1, 16, 1, 2),
    }
    sum(x.square().sum() for x in outputs.values()).backward()
    assert all(parameter.grad is not None for parameter in fpn.parameters())


def test_autocast_keeps_features_finite() -> None:
    backbone = ConvNeXtBackbone(network().features, NAMES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = backbone(torch.randn(1, 3, 64, 64))
    assert all(torch.isfinite(x).all() for x in outputs.values())


@pytest.mark.parametrize("freeze_at", [0, 3])
def test_checkpointing_changes_no_gradient_and_skips_the_same_blocks(freeze_at: int) -> None:
    """Stochastic depth 0.5 skips blocks: a second draw in the backward pass would be seen."""
    image = torch.randn(1, 3, 64, 64)
    gradients = []
    for checkpointing in (False, True):
        backbone = ConvNeXtBackbone(network(0.5).features, NAMES, freeze_at, checkpointing).train()
        torch.manual_seed(3)
        outputs = backbone(image)
        # What was drawn since must not matter.
        torch.rand(5)
        sum(x.square().sum() for x in outputs.values()).backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters()})
    plain, checkpointed = gradients
    for name, gradient in plain.items():
        assert (gradient is None) == (checkpointed[name] is None)
        if gradient is not None:
            assert torch.equal(gradient, checkpointed[name]), name
    assert any(g is not None and not g.any() for g in plain.values()), "no block was skipped"


def test_checkpointing_keeps_less_for_the_backward_pass() -> None:
    image = torch.randn(1, 3, 64, 64)
    kept = []
    for checkpointing in (False, True):
        backbone = ConvNeXtBackbone(network().features, NAMES, 0, checkpointing).train()
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backbone(image)
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


def test_checkpointing_computes_nothing_twice_without_a_backward_pass() -> None:
    backbone = ConvNeXtBackbone(network().features, NAMES, 0, checkpointing=True)
    image = torch.randn(1, 3, 64, 64)
    expected = ConvNeXtBackbone(backbone.features, NAMES)
    expected.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        for name, features in expected(image).items():
            assert torch.equal(backbone(image)[name], features)


@pytest.mark.parametrize("value", [False, True])
def test_the_config_says_whether_to_checkpoint(value: bool) -> None:
    with torch.device("meta"):
        backbone = build_convnext_backbone(
            config(
                *("MODEL.CONVNEXT.SIZE", "tiny", "MODEL.CONVNEXT.GRADIENT_CHECKPOINTING", value)
            ),
            IMAGE,
        )
    assert backbone.checkpointing is value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.CONVNEXT.SIZE", "huge"], "SIZE is 'huge'; known: pico, tiny, small, base, large"),
        (["MODEL.CONVNEXT.STOCHASTIC_DEPTH", 1.0], "STOCHASTIC_DEPTH is 1.0"),
        (["MODEL.CONVNEXT.OUT_FEATURES", ["res2", "res6"]], "OUT_FEATURES is .*res6"),
        (["MODEL.CONVNEXT.OUT_FEATURES", []], "OUT_FEATURES is"),
    ],
)
def test_values_that_it_does_not_know_are_refused(options: list, message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build_convnext_backbone(config("MODEL.CONVNEXT.SIZE", "tiny", *options), IMAGE)


@pytest.mark.parametrize("freeze_at", [-1, 6])
def test_freezing_what_is_not_there_is_refused(freeze_at: int) -> None:
    with pytest.raises(ConfigError, match=f"FREEZE_AT is {freeze_at}"):
        ConvNeXtBackbone(network().features, NAMES, freeze_at)


def test_the_config_says_how_much_is_frozen() -> None:
    cfg = config("MODEL.CONVNEXT.SIZE", "tiny")
    cfg.MODEL.BACKBONE.FREEZE_AT = 1
    with torch.device("meta"):
        backbone = build_convnext_backbone(cfg, IMAGE)
    frozen = {n.split(".")[1] for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"0"}
