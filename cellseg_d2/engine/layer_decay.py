"""Layer-wise learning-rate decay for ConvNeXt: the nearer to the image, the slower.

Clark et al. 2020 (ELECTRA) and Bao et al. 2022 (BEiT) fine-tune so; Liu et al. 2022 do with
ConvNeXt, whose layers are cut here as theirs: the stem, then every three consecutive blocks of a
stage, a downsampling counted to the blocks behind it. That makes layers 0 to 6 of ConvNeXt-T and
0 to 12 of S, B and L. What follows, output norms, FPN and heads, learns at the full rate. For
Cascade Mask R-CNN the paper's configs decay by .7 (T, S, L) and .8 (B, from ImageNet-1K).
"""

from __future__ import annotations

from typing import Any

from detectron2.solver.build import reduce_param_groups
from torch import nn

from ..errors import ConfigError
from ..modeling.backbone import ConvNeXtBackbone

BLOCKS_PER_LAYER = 3
"""Consecutive blocks of a stage that share a learning rate, as in Liu et al. 2022."""


def decay_by_layer(
    groups: list[dict[str, Any]], model: nn.Module, decay: float
) -> list[dict[str, Any]]:
    """Lower the learning rates of ConvNeXt's parameters, most for the stem.

    With layers 0 to L - 1, the rate in layer i is multiplied by ``decay ** (L - i)``.

    Args:
        groups: parameter groups, each with its "lr"; not changed.
        model: holds a ``ConvNeXtBackbone`` at any depth, and the parameters.
        decay: rate of a layer over that of the next, above 0 and not above 1.

    Returns:
        New groups: as few as the options that differ allow.

    Raises:
        ConfigError: for a decay out of range, or a model without a ConvNeXt.
    """
    if not 0 < decay <= 1:
        raise ConfigError(f"SOLVER.LAYER_DECAY is {decay}; it is above 0 and not above 1")
    backbones = [module for module in model.modules() if isinstance(module, ConvNeXtBackbone)]
    if not backbones:
        raise ConfigError(
            f"SOLVER.LAYER_DECAY is {decay} and the model has no ConvNeXt; set it to 1, or "
            "MODEL.BACKBONE.NAME to build_convnext_fpn_backbone"
        )
    scales: dict[nn.Parameter, float] = {}
    for backbone in backbones:
        layers = convnext_layers(backbone)
        for index, layer in enumerate(layers):
            for module in layer:
                scales |= dict.fromkeys(module.parameters(), decay ** (len(layers) - index))
    return reduce_param_groups(
        [
            {**group, "params": [parameter], "lr": group["lr"] * scales.get(parameter, 1.0)}
            for group in groups
            for parameter in group["params"]
        ]
    )


def convnext_layers(backbone: ConvNeXtBackbone) -> list[list[nn.Module]]:
    """Return the modules of each layer, the stem first; output norms belong to none."""
    stem, *rest = backbone.features
    layers: list[list[nn.Module]] = [[stem]]
    downsampling: list[nn.Module] = []
    for module in rest:
        blocks = list(module.children())
        if isinstance(blocks[0], nn.LayerNorm):
            downsampling = [module]
            continue
        blocks_of_layers = [
            blocks[start : start + BLOCKS_PER_LAYER]
            for start in range(0, len(blocks), BLOCKS_PER_LAYER)
        ]
        blocks_of_layers[0] = downsampling + blocks_of_layers[0]
        layers += blocks_of_layers
    return layers
