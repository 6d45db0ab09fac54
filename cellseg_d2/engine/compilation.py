"""``SOLVER.COMPILE``: the backbone through ``torch.compile``."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError

logger = logging.getLogger(__name__)


def compile_backbone(model: nn.Module, backend: str = "inductor") -> None:
    """Compile a detector's backbone in place, for images of any size.

    Parameters keep their names, and a copy of the model is not compiled. An FPN's bottom-up network
    is compiled and its few convolutions are not: heads may hook the FPN's output, and a hook is
    part of what is compiled. Compilation happens at the first iteration and again for evaluation.

    Args:
        model: with a ``backbone``; on its device already.
        backend: see ``torch.compile``.

    Raises:
        ConfigError: where this machine cannot compile: "inductor" needs a C++ compiler, and on CUDA
            Triton.
    """
    backbone: Any = model.backbone
    target: nn.Module = getattr(backbone, "bottom_up", backbone)
    device = next(target.parameters()).device
    try:
        # Compilers are looked for when the first kernel is made, which would be in the training.
        compiled = torch.compile(_probe, backend=backend, dynamic=True)
        compiled(torch.ones(3, device=device))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"SOLVER.COMPILE is on and torch.compile does not work here on {device} ({reason}); "
            "install a C++ compiler (and on CUDA the triton that belongs to torch), or set "
            "SOLVER.COMPILE False"
        ) from error
    target.compile(backend=backend, dynamic=True)
    logger.info("backbone compiled by torch.compile (%s), for any image size", backend)


def _probe(x: torch.Tensor) -> torch.Tensor:
    return (x * 2).relu()
