"""Layer-wise learning rates against hand-worked values and the paper's own numbering."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.engine.hooks import LRScheduler
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn
from torchvision.models import ConvNeXt
from torchvision.models.convnext import CNBlockConfig

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.engine.layer_decay import convnext_layers, decay_by_layer
from cellseg_d2.engine.solver import build_lr_scheduler, build_optimizer
from cellseg_d2.modeling.backbone import ConvNeXtBackbone, build_convnext_backbone

NAMES = ["res2", "res3", "res4", "res5"]
RATES_BY_DISTANCE = [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]


def model() -> nn.Sequential:
    """Blocks 1, 1, 4, 1: layers stem, stage 1, stage 2, three and one of stage 3, stage 4."""
    settings = [
        CNBlockConfig(8, 8, 1),
        CNBlockConfig(8, 8, 1),
        CNBlockConfig(8, 8, 4),
        CNBlockConfig(8, None, 1),
    ]
    features = ConvNeXt(settings, num_classes=2).features
    return nn.Sequential(ConvNeXtBackbone(features, NAMES), nn.Conv2d(8, 4, 1))


def config(decay: float):
    cfg = load_config(options=["SOLVER.LAYER_DECAY", decay, "SOLVER.WEIGHT_DECAY", 0.05])
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 1.0, 100, 0
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    return cfg


def options_of(optimizer: torch.optim.Optimizer, net: nn.Module, key: str) -> dict[str, float]:
    values = {p: group[key] for group in optimizer.param_groups for p in group["params"]}
    return {name: values[p] for name, p in net.named_parameters()}


def test_rates_by_hand() -> None:
    net = model()
    rates = options_of(build_optimizer(config(0.5), net), net, "lr")
    # Six layers: the stem is six steps away from what follows them.
    distances = {
        "0.features.0.": 6,
        "0.features.1.": 5,
        "0.features.2.": 4,
        "0.features.3.": 4,
        "0.features.4.": 3,
        "0.features.5.0.": 3,
        "0.features.5.1.": 3,
        "0.features.5.2.": 3,
        "0.features.5.3.": 2,
        "0.features.6.": 1,
        "0.features.7.": 1,
        "0.norm_res": 0,
        "1.": 0,
    }
    for name, rate in rates.items():
        (distance,) = [d for prefix, d in distances.items() if name.startswith(prefix)]
        assert rate == RATES_BY_DISTANCE[distance], name


def papers_layer(name: str, last: int) -> int:
    """Layer of a torchvision parameter name by the rules of the paper's detection code."""
    part, *rest = name.removeprefix("features.").split(".")
    if part == "0":
        return 0
    downsampling, stage = int(part) % 2 == 0, int(part) // 2
    if stage == 3:
        return last
    if stage < 2:
        return stage + 1
    return 3 if downsampling else 3 + int(rest[0]) // 3


@pytest.mark.parametrize(("size", "last"), [("tiny", 6), ("small", 12), ("base", 12)])
def test_layers_are_the_papers(size: str, last: int) -> None:
    cfg = load_config(options=["MODEL.CONVNEXT.SIZE", size, "MODEL.BACKBONE.FREEZE_AT", 0])
    with torch.device("meta"):
        backbone = build_convnext_backbone(cfg, ShapeSpec(channels=3))
    layers = convnext_layers(backbone)
    assert len(layers) == last + 1
    number = {p: i for i, layer in enumerate(layers) for m in layer for p in m.parameters()}
    for name, parameter in backbone.named_parameters():
        if name.startswith("features."):
            assert number.pop(parameter) == papers_layer(name, last), name
    assert not number


def test_weight_decay_skips_norms_and_layer_scale_at_every_rate() -> None:
    net = model()
    for decay in (1.0, 0.5):
        values = options_of(build_optimizer(config(decay), net), net, "weight_decay")
        norms = {
            f"{name}.{parameter}"
            for name, module in net.named_modules()
            if isinstance(module, nn.LayerNorm)
            for parameter in ("weight", "bias")
        }
        assert len(norms) == 2 * (1 + 7 + 3 + 4)  # stem, blocks, downsamplings, outputs
        for name, value in values.items():
            spared = name in norms or name.endswith("layer_scale")
            assert value == (0.0 if spared else 0.05), name


def test_as_few_groups_as_rates_and_decays() -> None:
    optimizer = build_optimizer(config(0.5), model())
    assert len(optimizer.param_groups) == 2 * len(RATES_BY_DISTANCE)


def test_one_rate_for_all_by_default() -> None:
    net = model()
    assert set(options_of(build_optimizer(config(1.0), net), net, "lr").values()) == {1.0}


def test_groups_given_are_not_changed_and_bias_factors_stay() -> None:
    net = model()
    bias = net[0].features[0][0].bias
    groups = [{"params": [bias], "lr": 2.0}, {"params": [net[1].weight], "lr": 1.0}]
    decayed = decay_by_layer(groups, net, 0.5)
    assert [(group["lr"], group["params"]) for group in groups] == [
        (2.0, [bias]),
        (1.0, [net[1].weight]),
    ]
    assert [(group["lr"], group["params"][0] is bias) for group in decayed] == [
        (2.0 * 0.015625, True),
        (1.0, False),
    ]


def test_the_schedule_keeps_the_ratios() -> None:
    net, cfg = model(), config(0.5)
    optimizer = build_optimizer(cfg, net)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for _ in range(50):
        optimizer.step()
        scheduler.step()
    rates = options_of(optimizer, net, "lr")
    assert rates["1.weight"] == pytest.approx(0.5)
    assert rates["0.features.0.0.weight"] == pytest.approx(0.5 * 0.015625)


def test_the_shipped_config_logs_the_full_rate(repository: Path) -> None:
    cfg = load_config(repository / "configs/cascade_convnext_B_FPN.yaml")
    assert cfg.SOLVER.LAYER_DECAY == 0.8
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        optimizer = build_optimizer(cfg, build_model(cfg))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert max(rates) == cfg.SOLVER.BASE_LR
    assert min(rates) == pytest.approx(cfg.SOLVER.BASE_LR * 0.8**13)
    assert rates[LRScheduler.get_best_param_group_id(optimizer)] == cfg.SOLVER.BASE_LR


def test_frozen_layers_are_in_no_group() -> None:
    net = model()
    net[0].features[0].requires_grad_(False)
    groups = build_optimizer(config(0.5), net).param_groups
    trained = {p for group in groups for p in group["params"]}
    assert trained == {p for p in net.parameters() if p.requires_grad}
    assert min(group["lr"] for group in groups) == RATES_BY_DISTANCE[5]


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match="LAYER_DECAY"):
        build_optimizer(config(decay), model())


def test_a_model_without_convnext_is_refused() -> None:
    with pytest.raises(ConfigError, match="LAYER_DECAY is 0.5 and the model has no ConvNeXt"):
        build_optimizer(config(0.5), nn.Linear(2, 2))
