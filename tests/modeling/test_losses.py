"""Mask losses against answers worked out by hand, plain loops and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.modeling.losses import bce, bce_dice, build_mask_loss, dice, tversky

LOSSES = {
    "bce": bce,
    "dice": dice,
    "bce_dice": lambda x, y: bce_dice(x, y, 0.7, 1.3),
    "tversky": lambda x, y: tversky(x, y, 0.3, 0.7),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)

# Probabilities 1/2, 3/4, 1/4, 1/2.
LOGITS = torch.tensor([[[0.0, math.log(3)], [-math.log(3), 0.0]]])
TARGETS = torch.tensor([[[True, True], [False, False]]])


def example(count: int = 6, side: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, side, side, generator=generator)
    return logits, torch.rand(count, side, side, generator=generator) > 0.6


def test_dice_by_hand() -> None:
    # Σpg = 1/2 + 3/4, Σp = Σg = 2, one pixel of smoothing: 1 - (5/2 + 1) / (4 + 1).
    assert dice(LOGITS, TARGETS).item() == pytest.approx(0.3)


def test_tversky_by_hand() -> None:
    # TP = 5/4, FP = 1/4 + 1/2, FN = 1/2 + 1/4, half a pixel of smoothing.
    similarity = 1.75 / (1.75 + 0.2 * 0.75 + 0.9 * 0.75)
    assert tversky(LOGITS, TARGETS, 0.2, 0.9).item() == pytest.approx(1 - similarity)


def test_bce_by_hand() -> None:
    # -ln of the probability of what is there: 1/2, 3/4, 3/4, 1/2.
    expected = (2 * math.log(2) + 2 * math.log(4 / 3)) / 4
    assert bce(LOGITS, TARGETS).item() == pytest.approx(expected)


def test_alpha_weighs_false_positives_and_beta_false_negatives() -> None:
    everywhere, nowhere = torch.full((1, 4), 20.0), torch.full((1, 4), -20.0)
    half = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert tversky(everywhere, half, 1.0, 0.0) > 0.4 > tversky(everywhere, half, 0.0, 1.0)
    assert tversky(nowhere, half, 0.0, 1.0) > 0.4 > tversky(nowhere, half, 1.0, 0.0)


def test_dice_equals_its_formula_and_tversky_of_one_half() -> None:
    logits, targets = example()
    expected = []
    for x, g in zip(logits.tolist(), targets.tolist(), strict=True):
        pairs = [
            (1 / (1 + math.exp(-v)), float(t))
            for row, truth in zip(x, g, strict=True)
            for v, t in zip(row, truth, strict=True)
        ]
        both = sum(p * t for p, t in pairs)
        expected.append(
            1 - (2 * both + 1) / (sum(p for p, _ in pairs) + sum(t for _, t in pairs) + 1)
        )
    mean = sum(expected) / len(expected)
    assert dice(logits, targets).item() == pytest.approx(mean, abs=1e-6)
    assert tversky(logits, targets, 0.5, 0.5).item() == pytest.approx(mean, abs=1e-6)


def test_bce_is_pytorchs_to_the_bit() -> None:
    logits, targets = example()
    assert torch.equal(
        bce(logits, targets), F.binary_cross_entropy_with_logits(logits, targets.float())
    )


def test_bce_dice_is_the_weighted_sum() -> None:
    logits, targets = example()
    expected = 0.7 * bce(logits, targets) + 1.3 * dice(logits, targets)
    assert torch.equal(bce_dice(logits, targets, 0.7, 1.3), expected)


@each_loss
def test_gradient(loss: Callable) -> None:
    logits, targets = example(3, 4)
    logits = logits.double().requires_grad_()
    soft = (targets + 0.25 * torch.rand(targets.shape)).clamp(max=1)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), logits)
    assert torch.autograd.gradcheck(lambda x: loss(x, soft), logits)


@each_loss
def test_the_mean_is_over_instances(loss: Callable) -> None:
    logits, targets = example()
    alone = [loss(x[None], y[None]) for x, y in zip(logits, targets, strict=True)]
    assert torch.allclose(loss(logits, targets), torch.stack(alone).mean())


@each_loss
def test_the_shape_of_a_mask_does_not_matter(loss: Callable) -> None:
    logits, targets = example()
    assert torch.allclose(loss(logits, targets), loss(logits.flatten(1), targets.flatten(1)))


@each_loss
def test_no_instances_give_a_zero_with_a_graph(loss: Callable) -> None:
    weight = torch.ones(3, requires_grad=True)
    logits = torch.zeros(0, 3) * weight
    value = loss(logits, torch.zeros(0, 3, dtype=torch.bool))
    value.backward()
    assert value.item() == 0 and torch.equal(weight.grad, torch.zeros(3))


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("truth", [0.0, 1.0])
@pytest.mark.parametrize("magnitude", [1e4, -1e4, 0.0])
def test_finite_at_the_extremes(
    loss: Callable, dtype: torch.dtype, truth: float, magnitude: float
) -> None:
    logits = torch.full((2, 28, 28), magnitude, dtype=dtype, requires_grad=True)
    value = loss(logits, torch.full((2, 28, 28), truth))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()
    if (magnitude > 0) == (truth > 0) and magnitude:
        assert value.item() == pytest.approx(0, abs=1e-6)


@each_loss
def test_an_empty_mask_still_has_a_gradient(loss: Callable) -> None:
    logits = torch.zeros(1, 14, 14, requires_grad=True)
    loss(logits, torch.zeros(1, 14, 14)).backward()
    assert (logits.grad > 0).all()


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss: Callable, dtype: torch.dtype) -> None:
    logits, targets = example(4, 28)
    logits = logits.to(dtype)
    expected = loss(logits.float(), targets)
    assert torch.equal(loss(logits, targets), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, targets)
    assert value.dtype == torch.float32 and torch.equal(value, expected)


@each_loss
def test_shapes_that_differ_are_refused(loss: Callable) -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 1\)"):
        loss(torch.zeros(2, 3), torch.zeros(2, 1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bce", bce),
        ("dice", dice),
        ("bce_dice", lambda x, y: 2 * bce(x, y) + 3 * dice(x, y)),
        ("tversky", lambda x, y: tversky(x, y, 0.3, 0.7)),
    ],
)
def test_the_config_names_the_loss(name: str, expected: Callable) -> None:
    head = "MODEL.ROI_MASK_HEAD."
    options = [head + "LOSS", name, head + "LOSS_WEIGHTS", "[2.0, 3.0]"]
    options += [head + "TVERSKY_ALPHA", "0.3", head + "TVERSKY_BETA", "0.7"]
    loss = build_mask_loss(load_config(options=options))
    assert torch.allclose(loss(*example()), expected(*example()))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("LOSS", "focal", "'focal'; known losses: bce, dice, bce_dice, tversky"),
        ("LOSS_WEIGHTS", "[1.0]", "two weights"),
        ("LOSS_WEIGHTS", "[1.0, -1.0]", "two weights"),
        ("TVERSKY_ALPHA", "-0.1", "TVERSKY_ALPHA"),
        ("TVERSKY_BETA", "-0.1", "TVERSKY_BETA"),
    ],
)
def test_configs_that_name_no_loss_are_refused(key: str, value: str, message: str) -> None:
    cfg = load_config(options=[f"MODEL.ROI_MASK_HEAD.{key}", value])
    with pytest.raises(ConfigError, match=message):
        build_mask_loss(cfg)
