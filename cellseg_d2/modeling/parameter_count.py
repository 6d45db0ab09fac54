"""The size of a config's model, without the memory or the time to make it."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model


def build_meta_model(cfg: CfgNode) -> torch.nn.Module:
    """Build a config's model on the meta device: every shape, no numbers.

    Args:
        cfg: not changed; its ``MODEL.DEVICE`` and ``MODEL.WEIGHTS`` do not matter.

    Returns:
        The model, which cannot be run.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def count_parameters(cfg: CfgNode) -> int:
    """Return the number of parameters of a config's model, those of frozen layers included.

    The statistics of BatchNorm are not parameters, nor is anything of a FrozenBN.
    """
    return sum(parameter.numel() for parameter in build_meta_model(cfg).parameters())
