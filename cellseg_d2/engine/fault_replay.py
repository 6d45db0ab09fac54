"""A fault that a training left, computed again: ``tools/replay_fault.py``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import PathLike

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from ..config import add_cellseg_config
from ..config_checks import check_device_name
from ..errors import ConfigError
from ..modeling.mixed_precision import use_amp
from .fault_dump import read_fault
from .gradients import add_gradients

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replay:
    """What came out.

    Attributes:
        losses: of each batch by name; empty where the forward pass stopped.
        recorded: those of the training.
        gradient_norm: of all batches' mean gradient; None where the forward pass stopped.
        error: what the forward pass stopped with, or "".
        parameters: names of the parameters whose gradient is not finite.
    """

    losses: list[dict[str, float]]
    recorded: list[dict[str, float]]
    gradient_norm: float | None
    error: str
    parameters: list[str]


def replay(path: str | PathLike[str], device: str = "") -> Replay:
    """Compute a fault again: the same model, batch and random numbers.

    The same device gives the same losses, as far as its kernels repeat themselves. Another one has
    random numbers of its own, which change what proposals are sampled. Of several processes, this
    computes the gradient of the one that left the file.

    Args:
        path: ``nonfinite_<iteration>.pth``.
        device: to compute on; "" for the training's, or the CPU where there is no CUDA.

    Returns:
        The losses and the gradient's norm.

    Raises:
        CellDataError: for a file that is no such dump.
        ConfigError: for a device that is none, or is not there.
    """
    if device:
        check_device_name(device)
    fault = read_fault(path)
    cfg = get_cfg()
    add_cellseg_config(cfg)
    cfg.merge_from_other_cfg(CfgNode.load_cfg(fault["config"]))
    trained_on = cfg.MODEL.DEVICE
    cfg.MODEL.DEVICE = device or trained_on
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE != trained_on:
        logger.warning(
            "trained on %s, computed again on %s: other random numbers, other proposals",
            trained_on,
            cfg.MODEL.DEVICE,
        )
    _check_device(cfg.MODEL.DEVICE)
    model = build_model(cfg)
    model.load_state_dict(fault["model"])
    model.train()
    amp = use_amp(bool(fault["amp"]), cfg.MODEL.DEVICE, fault["amp"] or "float16")
    losses: list[dict[str, float]] = []
    factor = 1 / len(fault["batches"])
    try:
        with EventStorage(fault["iteration"]):  # Detectron2's heads count into one
            for batch in fault["batches"]:
                computed = add_gradients(
                    model, batch["samples"], batch["seed"], amp=amp, factor=factor
                )
                losses.append({name: loss.item() for name, loss in computed.items()})
    except FloatingPointError as error:
        return Replay([*losses, {}], fault["losses"], None, str(error), [])
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values())).item()
    bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    return Replay(losses, fault["losses"], norm, "", bad)


def _check_device(name: str) -> None:
    """Refuse a device that cannot compute."""
    try:
        torch.ones(1, device=name).item()
    # PyTorch asserts that it was built for a device, and imports what drives some.
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"MODEL.DEVICE {name!r} is not to be had here: {reason}") from error
