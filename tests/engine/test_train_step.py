"""The step against the same arithmetic written out in PyTorch."""

from __future__ import annotations

import copy
import itertools
import logging

import pytest
import torch
from detectron2.utils.events import EventStorage

from cellseg_d2.engine.train_step import TrainStep, mix_seed, use_amp


class Model(torch.nn.Module):
    """Two losses of a linear layer; notes the random number it draws."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 3)
        self.drawn: list[float] = []

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        self.drawn.append(torch.rand(()).item())
        out = self.linear(batch)
        return {"loss_a": (out**2).mean() * 50, "loss_b": out.abs().mean()}


def batches():
    return [torch.full((2, 4), float(i + 1)) for i in range(4)]


def run(step: TrainStep, iterations: range) -> EventStorage:
    with EventStorage(iterations.start) as storage:
        for step.iter in iterations:
            storage.iter = step.iter
            step.run_step()
    return storage


@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_equals_plain_pytorch(max_norm: float) -> None:
    model, plain = Model(), Model()
    step = TrainStep(model, batches(), torch.optim.SGD(model.parameters(), 0.1), max_norm=max_norm)
    storage = run(step, range(4))
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for batch in batches():
        optimizer.zero_grad()
        sum(plain(batch).values()).backward()
        if max_norm:
            gradients = torch.cat([p.grad.flatten() for p in plain.parameters()])
            norm = gradients.norm()
            assert norm > max_norm, "the case does not clip"
            for p in plain.parameters():
                p.grad *= max_norm / (norm + 1e-6)
        optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    if max_norm:
        assert storage.history("grad_norm").latest() == pytest.approx(norm.item(), rel=1e-5)


def test_random_numbers_depend_on_the_iteration_alone() -> None:
    whole, resumed = Model(), Model()
    run(TrainStep(whole, batches(), torch.optim.SGD(whole.parameters(), 0.1), seed=3), range(4))
    later = TrainStep(resumed, batches(), torch.optim.SGD(resumed.parameters(), 0.1), seed=3)
    torch.rand(17)
    run(later, range(2, 4))
    assert resumed.drawn == whole.drawn[2:]
    assert len(set(whole.drawn)) == 4


def test_state_continues_an_optimizer_with_momentum() -> None:
    model = Model()
    step = TrainStep(model, batches(), torch.optim.Adam(model.parameters(), 0.1))
    run(step, range(2))
    other = Model()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed = TrainStep(other, batches()[2:], torch.optim.Adam(other.parameters(), 0.1))
    resumed.load_state_dict(copy.deepcopy(step.state_dict()))
    run(step, range(2, 4))
    run(resumed, range(2, 4))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_loader_is_started_at_the_first_step() -> None:
    started = []

    def stream():
        started.append(True)
        yield from itertools.repeat(torch.ones(2, 4))

    class Loader:
        def __iter__(self):
            return stream()

    model = Model()
    step = TrainStep(model, Loader(), torch.optim.SGD(model.parameters(), 0.1))
    assert not started
    run(step, range(1))
    assert started


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = Model()
    step = TrainStep(
        model, [torch.full((2, 4), float("inf"))], torch.optim.SGD(model.parameters(), 0.1)
    )
    with pytest.raises(FloatingPointError, match="iteration=0"):
        run(step, range(1))


def test_amp_turns_itself_off_without_cuda_and_says_so(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert not use_amp(True, "cpu")
    assert "SOLVER.AMP.ENABLED" in caplog.text
    assert use_amp(True, "cuda:0") and not use_amp(False, "cuda") and not use_amp(False, "cpu")


def test_mixed_seeds_differ_and_repeat() -> None:
    seeds = {mix_seed(a, b, c) for a, b, c in itertools.product(range(5), repeat=3)}
    assert len(seeds) == 125
    assert mix_seed(1, 2, 3) == mix_seed(1, 2, 3)
