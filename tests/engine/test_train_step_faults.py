"""What the training step does where a loss or a gradient is not finite."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from detectron2.structures import Boxes

from cellseg_d2.engine.fault_dump import NonFiniteError
from cellseg_d2.engine.train_step import MAX_SKIPPED, TrainStep

from .small_model import Model, batches, run


def test_a_loss_that_is_not_finite_stops_the_run_before_the_update() -> None:
    model = Model()
    before = copy.deepcopy(model.state_dict())
    samples = [{"x": 1.0, "file_name": f"{name}.tif"} for name in "abcd"]
    samples[2]["x"] = float("inf")
    stream = [samples[:2], samples[2:]]
    forward = model.forward

    def of_dicts(batch: list[dict]) -> dict[str, torch.Tensor]:
        return forward(torch.tensor([[sample["x"]] * 4 for sample in batch]))

    model.forward = of_dicts
    step = TrainStep(model, stream * 9, torch.optim.SGD(model.parameters(), 0.1), accumulate=2)
    with pytest.raises(NonFiniteError) as caught:
        run(step, range(5, 7))
    for text in ("iteration 5: a loss", "batch 11: loss_a nan, loss_b nan", "position 22: c.tif"):
        assert text in str(caught.value)
    assert "batch 10" not in str(caught.value), "the batch before it was sound"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def steep(model: Model):
    """A finite loss whose gradient is infinite."""
    return lambda batch: {"loss": (model.linear(batch) * 0).abs().sum().sqrt()}


def test_a_gradient_that_is_not_finite_stops_the_run() -> None:
    model = Model()
    model.forward = steep(model)
    step = TrainStep(model, batches(), torch.optim.SGD(model.parameters(), 0.1), accumulate=2)
    with pytest.raises(NonFiniteError, match="(?s)iteration 0: the gradient.*norm is nan.*batch 1"):
        run(step, range(1))
    assert all(p.isfinite().all() for p in model.parameters())


def clip_boxes() -> None:
    # As a cascade's stage does with those of the one before.
    Boxes(torch.full((1, 4), torch.nan)).clip((9, 9))


def refuse_proposals() -> None:
    # As Detectron2's proposal network does.
    raise FloatingPointError("Predicted boxes contain NaN")


@pytest.mark.parametrize("refuse", [clip_boxes, refuse_proposals])
def test_what_the_forward_pass_refuses_is_named(refuse) -> None:
    model = Model()
    model.forward = lambda batch: refuse()
    step = TrainStep(model, batches(), torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(NonFiniteError, match="(?s)forward pass.*contains? .*NaN.*position 1"):
        run(step, range(1))


def test_other_assertions_stay_what_they_are() -> None:
    model = Model()

    def fail(batch: torch.Tensor):
        raise AssertionError("a bug")

    model.forward = fail
    step = TrainStep(model, batches(), torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(AssertionError, match="a bug"):
        run(step, range(1))


def test_a_scaler_skips_overflows_until_it_cannot_help() -> None:
    """The scaler of CPUs is that of CUDA; float32 overflows with a larger scale."""
    model = Model()
    before = copy.deepcopy(model.state_dict())
    stream = itertools.repeat(torch.full((2, 4), 1e5))
    step = TrainStep(model, stream, torch.optim.SGD(model.parameters(), 1e-30))
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**98)
    storage = run(step, range(3))
    assert step.scaler.get_scale() == 2.0**95
    assert [v for v, _ in storage.history("skipped_update").values()] == [1, 1, 1]
    assert "grad_norm" not in storage.histories()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    storage = run(step, range(3, 30))
    assert storage.history("skipped_update").latest() == 0
    assert storage.history("grad_norm").latest() > 1e9
    model.forward = steep(model)
    with pytest.raises(NonFiniteError, match=f"iteration {29 + MAX_SKIPPED}"):
        run(step, range(30, 30 + 2 * MAX_SKIPPED))
