"""Optimizers, schedule and epochs against their written-out definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.convnext import LayerNorm2d

from cellseg_d2.config import load_config
from cellseg_d2.engine.solver import (
    build_lr_scheduler,
    build_optimizer,
    continue_schedule,
    epochs_to_iterations,
)
from cellseg_d2.engine.train_step import TrainStep


@pytest.fixture
def cfg():
    cfg = load_config()
    cfg.SOLVER.BASE_LR = 2e-4
    cfg.SOLVER.WEIGHT_DECAY = 1e-2
    cfg.SOLVER.MAX_ITER = 100
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    return cfg


def model() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1),
        torch.nn.BatchNorm2d(4),
        torch.nn.GroupNorm(2, 4),
        LayerNorm2d(4),
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [("SGD", torch.optim.SGD), ("Adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW)],
)
def test_optimizer_kinds_and_no_decay_on_norms(cfg, name: str, kind: type) -> None:
    cfg.SOLVER.OPTIMIZER = name
    net = model()
    optimizer = build_optimizer(cfg, net)
    assert type(optimizer) is kind
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decay[id(net[0].weight)] == 1e-2
    for norm in net[1:]:
        assert decay[id(norm.weight)] == decay[id(norm.bias)] == 0.0
    assert len(decay) == len(list(net.parameters()))


def test_unknown_optimizer_lists_the_known_ones(cfg) -> None:
    cfg.SOLVER.OPTIMIZER = "Lion"
    with pytest.raises(ValueError, match="SGD, Adam, AdamW"):
        build_optimizer(cfg, model())


def rates(cfg) -> list[float]:
    optimizer = build_optimizer(cfg, model())
    scheduler = build_lr_scheduler(cfg, optimizer)
    result = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*result, optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize("floor", [0.0, 5e-6])
def test_cosine_ends_at_its_floor(cfg, floor: float) -> None:
    cfg.SOLVER.MIN_LR = floor
    expected = [floor + (2e-4 - floor) * (1 + math.cos(math.pi * i / 100)) / 2 for i in range(101)]
    assert rates(cfg) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_warm_up_is_linear_and_meets_the_cosine(cfg) -> None:
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR, cfg.SOLVER.MIN_LR = 10, 0.1, 5e-6
    got = rates(cfg)
    cosine = [5e-6 + (2e-4 - 5e-6) * (1 + math.cos(math.pi * i / 100)) / 2 for i in range(101)]
    ramp = [2e-5 + (cosine[10] - 2e-5) * i / 10 for i in range(10)]
    assert got[:10] == pytest.approx(ramp, rel=1e-6)
    assert got[10:] == pytest.approx(cosine[10:], rel=1e-6)


@pytest.mark.parametrize("name", ["WarmupCosineLR", "WarmupMultiStepLR"])
@pytest.mark.parametrize(("warm_up", "used"), [(50, 50), (51, 10), (500, 10)])
def test_a_warm_up_leaves_room_to_train(cfg, name: str, warm_up: int, used: int, caplog) -> None:
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.STEPS = name, ()
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = warm_up, 0.0
    got = rates(cfg)
    assert got.index(max(got)) == used
    assert max(got) >= 1e-4 * (1 - 1e-6)
    assert ("warming up over 10 in place of them" in caplog.text) == (used != warm_up)
    assert cfg.SOLVER.WARMUP_ITERS == warm_up


def test_a_resumed_schedule_is_the_configs(cfg) -> None:
    """The state of another rate, floor and decay; a whole run of the config is the oracle."""
    net = model()
    cfg.SOLVER.OPTIMIZER = "AdamW"
    was = cfg.clone()
    was.SOLVER.BASE_LR, was.SOLVER.MIN_LR, was.SOLVER.WEIGHT_DECAY = 1e-3, 1e-5, 0.1
    optimizer = build_optimizer(was, net)
    schedule = build_lr_scheduler(was, optimizer)
    for _ in range(50):
        optimizer.step()
        schedule.step()
    states = TrainStep(net, [], optimizer).state_dict(), schedule.state_dict()

    expected = rates(cfg)
    optimizer = build_optimizer(cfg, net)
    schedule = build_lr_scheduler(cfg, optimizer)
    schedule.load_state_dict(states[1])
    TrainStep(net, [], optimizer).load_state_dict(states[0])
    continue_schedule(schedule)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-2, 0.0}
    got = []
    for _ in range(50):
        got.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert got == expected[50:100]


def test_a_floor_above_the_base_rate_is_refused(cfg) -> None:
    cfg.SOLVER.MIN_LR = 1.0
    with pytest.raises(ValueError, match="MIN_LR"):
        rates(cfg)


def test_epochs_become_iterations(cfg) -> None:
    cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.CHECKPOINT_EPOCHS, cfg.TEST.EVAL_EPOCHS = 40, 2, 5
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.freeze()
    counted = epochs_to_iterations(cfg, 209)
    assert counted.SOLVER.MAX_ITER == 40 * 105
    assert counted.SOLVER.CHECKPOINT_PERIOD == 210
    assert counted.TEST.EVAL_PERIOD == 525
    assert counted.is_frozen() and cfg.SOLVER.MAX_ITER == 100


def test_without_epochs_the_config_counts_iterations(cfg) -> None:
    assert epochs_to_iterations(cfg, 209) is cfg


def test_no_checkpoints_but_the_last(cfg) -> None:
    cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.CHECKPOINT_EPOCHS, cfg.TEST.EVAL_EPOCHS = 3, 0, 0
    counted = epochs_to_iterations(cfg, 10)
    assert counted.SOLVER.CHECKPOINT_PERIOD == counted.SOLVER.MAX_ITER
    assert counted.TEST.EVAL_PERIOD == 0
