"""What is computed in half precision: ``SOLVER.AMP`` in training, ``TEST.AMP`` at test time."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import nn

from ..errors import ConfigError

logger = logging.getLogger(__name__)

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""What ``SOLVER.AMP.DTYPE`` may name."""


def use_amp(
    enabled: bool, device: str, dtype: str = "float16", key: str = "SOLVER.AMP.ENABLED"
) -> torch.dtype | None:
    """Say what to compute in mixed precision in, where it was asked for.

    Float16 needs CUDA. Bfloat16 needs no scaling and is computed on a CPU too: faster than full
    precision on one that has instructions for it (AVX512-BF16, AMX), slower on others.

    Args:
        enabled: the value of ``key``.
        device: ``MODEL.DEVICE``.
        dtype: ``SOLVER.AMP.DTYPE``.
        key: what asked, ``SOLVER.AMP.ENABLED`` or ``TEST.AMP.ENABLED``.

    Returns:
        The dtype; None for full precision.

    Raises:
        ConfigError: for a dtype that is none of ``AMP_DTYPES``.
    """
    if dtype not in AMP_DTYPES:
        raise ConfigError(f"SOLVER.AMP.DTYPE is {dtype!r}; known: {', '.join(AMP_DTYPES)}")
    if enabled and dtype == "float16" and not device.startswith("cuda"):
        logger.warning("%s with float16 needs CUDA; on %s it is off", key, device)
        return None
    return AMP_DTYPES[dtype] if enabled else None


def score_in_full_precision(roi_heads: nn.Module) -> None:
    """Let a model's box predictors answer in float32 at test time, in mixed precision too.

    A score that bfloat16 holds has 8 bits: those of the surest detections would all be 1.

    Args:
        roi_heads: changed in place.
    """
    for module in roi_heads.modules():
        if isinstance(module, FastRCNNOutputLayers):
            module.register_forward_hook(_to_float)


def _to_float(module: nn.Module, _: Any, outputs: tuple[torch.Tensor, ...]) -> Any:
    return outputs if module.training else tuple(output.float() for output in outputs)
