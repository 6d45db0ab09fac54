"""The average of weights against torch's ``AveragedModel``, and that it leaves the model alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cellseg_d2 import ConfigError
from cellseg_d2.checkpoint import CellCheckpointer
from cellseg_d2.engine import CellTrainer
from cellseg_d2.engine.ema import WeightAverage
from cellseg_d2.inference import CellPredictor


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[2].requires_grad_(False)
    return net


def walk(net: nn.Module, steps: int, *averages: object) -> None:
    """Move weights and statistics at random; let each average follow."""
    for _ in range(steps):
        net(torch.randn(5, 3))
        with torch.no_grad():
            for p in net.parameters():
                if p.requires_grad:
                    p += torch.randn(p.shape)
        for average in averages:
            if isinstance(average, AveragedModel):
                average.update_parameters(net)
            else:
                average.after_step()


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_equals_torchs_averaged_model(decay: float) -> None:
    def average(old, new, count):
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        return old * keep + new * (1 - keep)

    net = model()
    ours = WeightAverage(net, decay)
    ours.before_train()
    theirs = AveragedModel(net, avg_fn=average)
    theirs.update_parameters(net)  # the first call copies: the weights to start from
    walk(net, 30, ours, theirs)
    expected = theirs.module.state_dict()
    found = ours.weights()
    assert found.keys() == expected.keys()
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
        assert decay == 0 or not torch.equal(found[name], net.state_dict()[name])
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked", "2.weight"):
        assert torch.equal(found[name], net.state_dict()[name]), "the model's own"


def test_the_model_gets_its_own_weights_back_to_the_bit() -> None:
    net = model()
    average = WeightAverage(net, 0.9)
    average.before_train()
    walk(net, 5, average)
    before = copy.deepcopy(net.state_dict())
    identities = [id(p) for p in net.parameters()]
    with pytest.raises(KeyError), average.applied():
        for name, value in average.weights().items():
            assert torch.equal(net.state_dict()[name], value)
        assert not torch.equal(net.state_dict()["0.weight"], before["0.weight"])
        raise KeyError
    assert [id(p) for p in net.parameters()] == identities
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert average.updates == 5


def test_a_shared_parameter_is_averaged_under_each_of_its_names() -> None:
    net = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    net[1].weight = net[0].weight
    average = WeightAverage(net, 0.9)
    average.before_train()
    with torch.no_grad():
        net[0].weight += 1
    average.after_step()
    weights = average.weights()
    assert torch.equal(weights["0.weight"], weights["1.weight"])
    assert not torch.equal(weights["1.weight"], net[1].weight)


def test_state_goes_on_to_the_bit() -> None:
    whole, half = model(), model()
    torch.manual_seed(3)
    first = WeightAverage(whole, 0.99)
    first.before_train()
    walk(whole, 4, first)
    state = copy.deepcopy(first.state_dict())
    half.load_state_dict(copy.deepcopy(whole.state_dict()))
    second = WeightAverage(half, 0.99)
    second.load_state_dict(state)
    second.before_train()
    torch.manual_seed(4)
    walk(whole, 4, first)
    torch.manual_seed(4)
    walk(half, 4, second)
    expected = first.weights()
    assert all(torch.equal(value, expected[k]) for k, value in second.weights().items())
    half[0].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"other parameters .*2 differ, 0\.bias first"):
        WeightAverage(half, 0.99).load_state_dict(state)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_decay_that_averages_nothing_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"SOLVER\.EMA\.DECAY"):
        WeightAverage(model(), decay)


def test_a_model_without_parameters() -> None:
    average = WeightAverage(nn.ReLU(), 0.9)
    average.before_train()
    average.after_step()
    assert average.weights() == {}
    with average.applied():
        pass


def test_a_run_evaluates_and_saves_the_averaged_weights(tiny, train) -> None:
    evaluated = []

    class Recording(CellTrainer):
        def test(self, cfg, net):
            evaluated.append(copy.deepcopy(net.state_dict()))
            return {"segm": {"AP50": float(len(evaluated))}}

    options = ("SOLVER.EMA.ENABLED", True, "TEST.BEST_METRIC", "ema/segm/AP50")
    cfg = tiny(*options, "TEST.EVAL_PERIOD", 0, output="ema")
    trainer = train(cfg, Recording)
    assert list(trainer.evaluation.results) == ["segm", "ema/segm"]
    raw, averaged = evaluated
    folder = Path(cfg.OUTPUT_DIR)
    files = {name: torch.load(folder / f"model_{name}.pth") for name in ("ema", "best", "final")}
    for name, value in averaged.items():
        assert torch.equal(files["ema"]["model"][name], value)
        assert torch.equal(files["best"]["model"][name], value)
        assert torch.equal(files["final"]["model"][name], raw[name])
    assert not torch.equal(averaged["features.0.weight"], raw["features.0.weight"])
    assert files["ema"].keys() == {"model", "iteration"}
    net = trainer.build_model(cfg)
    CellCheckpointer(net, complete=True).load(str(folder / "model_ema.pth"), checkpointables=[])
    assert torch.equal(net.state_dict()["features.0.weight"], averaged["features.0.weight"])
    cfg.MODEL.WEIGHTS = str(folder / "model_ema.pth")
    CellPredictor(cfg)
