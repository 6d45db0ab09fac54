"""The gradients of one batch, and scalars on their way from the device."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel


def add_gradients(
    model: torch.nn.Module,
    samples: Any,
    seed: int,
    *,
    amp: torch.dtype | None = None,
    factor: float = 1.0,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, torch.Tensor]:
    """Compute a batch's losses and add their gradients to the parameters'.

    Args:
        model: in training mode.
        samples: a batch.
        seed: of the model's random numbers, 32 bits.
        amp: see ``TrainStep``.
        factor: of the gradients.
        scaler: scales them further; None does not.

    Returns:
        The losses by name, detached, not multiplied.

    Raises:
        FloatingPointError: where boxes on the way are not finite.
    """
    torch.manual_seed(seed)
    device = next(model.parameters()).device.type
    with torch.autocast(device, dtype=amp, enabled=amp is not None):
        losses = _forward(model, samples)
        total = sum(losses.values()) * factor
    (total if scaler is None else scaler.scale(total)).backward()
    return {name: loss.detach() for name, loss in losses.items()}


def _forward(model: torch.nn.Module, samples: Any) -> Any:
    """Return the model's losses by name."""
    try:
        return model(samples)
    except AssertionError as error:
        # What Detectron2's Boxes say of those that a cascade's stage hands on.
        if "infinite or NaN" not in str(error):
            raise
        raise FloatingPointError(str(error)) from error


def to_floats(
    losses: Sequence[Mapping[str, torch.Tensor]], norm: torch.Tensor
) -> tuple[list[dict[str, float]], float]:
    """Bring scalars to the host, all in one transfer: each would wait for the device anew.

    Args:
        losses: by name, for each batch.
        norm: one more, on any device.

    Returns:
        Both, as floats.
    """
    flat = [loss for each in losses for loss in each.values()]
    device = flat[0].device if flat else norm.device
    numbers = iter(torch.stack([x.to(device, torch.float32) for x in (*flat, norm)]).tolist())
    return [{name: next(numbers) for name in each} for each in losses], next(numbers)


def unsynchronized(model: torch.nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Keep gradients to each process for a while, where there are several."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()
