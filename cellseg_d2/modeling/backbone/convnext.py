"""ConvNeXt as a Detectron2 backbone, alone or under an FPN.

Liu et al., "A ConvNet for the 2020s", CVPR 2022. The network is torchvision's; this module takes
its stages apart. As in the paper's detection experiments, each feature map that is given out
passes a LayerNorm of its own; those norms are not part of ImageNet weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import (
    ConvNeXt,
    convnext_base,
    convnext_large,
    convnext_small,
    convnext_tiny,
)
from torchvision.models.convnext import CNBlockConfig, LayerNorm2d
from torchvision.ops import StochasticDepth

from ...errors import ConfigError
from .fpn import build_fpn

STAGES = ("res2", "res3", "res4", "res5")
"""What Detectron2 calls the four stages; their strides are 4, 8, 16 and 32."""


def _convnext_pico(*, weights: None = None, stochastic_depth_prob: float = 0.0) -> ConvNeXt:
    """The stages of ConvNeXt V2's pico (Woo et al. 2023): 64 to 512 channels, 9 M parameters."""
    widths, depths = (64, 128, 256, 512), (2, 2, 6, 2)
    stages = [
        CNBlockConfig(*stage) for stage in zip(widths, (*widths[1:], None), depths, strict=True)
    ]
    return ConvNeXt(stages, stochastic_depth_prob)


SIZES: dict[str, Callable[..., ConvNeXt]] = {
    "pico": _convnext_pico,
    "tiny": convnext_tiny,
    "small": convnext_small,
    "base": convnext_base,
    "large": convnext_large,
}


class ConvNeXtBackbone(Backbone):
    """The stages of torchvision's ConvNeXt; parameters keep its names, ``features.*``.

    ``features`` holds the stem at index 0, stages at odd indices, and at each even one from 2 the
    downsampling before a stage. Stages behind the last one that is asked for are left out.

    Args:
        features: ``features`` of a torchvision ConvNeXt of four stages.
        out_features: names of the stages to give out, of ``STAGES``.
        freeze_at: as Detectron2 counts: 0 freezes nothing, 1 the stem, 2 the first stage too, and
            so on to 5, all stages. A stage's downsampling is frozen with it. Frozen blocks are
            never skipped, so frozen features do not vary. The output norms always train.
        checkpointing: whether to keep only what goes into each block, and compute the rest of its
            activations again in the backward pass (Chen et al. 2016, "Training Deep Nets with
            Sublinear Memory Cost"). The gradients are the same: the blocks that stochastic depth
            skips are skipped again.

    Raises:
        ConfigError: for an unknown stage, or ``freeze_at`` out of range.
    """

    def __init__(
        self,
        features: nn.Sequential,
        out_features: Sequence[str],
        freeze_at: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        if not out_features or not set(out_features) <= set(STAGES):
            raise ConfigError(
                f"MODEL.CONVNEXT.OUT_FEATURES is {list(out_features)}; "
                f"it names one or more of {', '.join(STAGES)}"
            )
        if not 0 <= freeze_at <= len(STAGES) + 1:
            raise ConfigError(
                f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}; "
                f"for ConvNeXt it lies between 0 and {len(STAGES) + 1}"
            )
        depth = 1 + max(STAGES.index(name) for name in out_features)
        self.features = nn.Sequential(*list(features)[: 2 * depth])
        self._out_features = [name for name in STAGES if name in out_features]
        self._out_feature_channels: dict[str, int] = {}
        self._out_feature_strides: dict[str, int] = {}
        stages: list[Any] = list(self.features)[1::2]
        for index, (name, stage) in enumerate(zip(STAGES, stages, strict=False)):
            if name in out_features:
                channels = stage[0].layer_scale.numel()
                self._out_feature_channels[name] = channels
                self._out_feature_strides[name] = 4 * 2**index
                self.add_module(f"norm_{name}", LayerNorm2d(channels, eps=1e-6))
        # The stem is one module, each later step two: 0, 1, 2, 4, 6, 8 modules.
        for part in list(self.features)[: max(freeze_at, 2 * freeze_at - 2)]:
            part.requires_grad_(False)
            for module in part.modules():
                if isinstance(module, StochasticDepth):
                    module.p = 0.0

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the normalised features of the chosen stages.

        Args:
            x: (N, 3, H, W) float, normalised images. H and W that are no multiples of
                ``size_divisibility`` lose the rest at the right and lower border.

        Returns:
            For each name in ``out_features`` a float tensor (N, C, H / stride, W / stride).
        """
        outputs = {}
        for index, module in enumerate(self.features):
            if index % 2 and self.checkpointing and _learns(module):
                for block in module.children():
                    x = checkpoint(block, x, use_reentrant=False)
            else:
                x = module(x)
            name = STAGES[index // 2]
            if index % 2 and name in self._out_features:
                outputs[name] = getattr(self, f"norm_{name}")(x)
        return outputs

    @property
    def size_divisibility(self) -> int:
        """Stride of the deepest stage, 32 for res5; no convolution with a stride is padded."""
        return max(self._out_feature_strides.values())


def _learns(stage: nn.Module) -> bool:
    """Whether a backward pass will go through a stage; frozen ones keep no activations anyway."""
    return torch.is_grad_enabled() and any(p.requires_grad for p in stage.parameters())


@BACKBONE_REGISTRY.register()
def build_convnext_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ConvNeXtBackbone:
    """Build ConvNeXt with random weights.

    Args:
        cfg: reads ``MODEL.CONVNEXT`` and ``MODEL.BACKBONE.FREEZE_AT``.
        input_shape: not used; images have three channels.

    Raises:
        ConfigError: for values that the model does not know.
    """
    node = cfg.MODEL.CONVNEXT
    if node.SIZE not in SIZES:
        raise ConfigError(f"MODEL.CONVNEXT.SIZE is {node.SIZE!r}; known: {', '.join(SIZES)}")
    if node.STOCHASTIC_DEPTH >= 1:
        raise ConfigError(
            f"MODEL.CONVNEXT.STOCHASTIC_DEPTH is {node.STOCHASTIC_DEPTH}; it is a probability "
            "below 1, or negative for the paper's"
        )
    options: dict[str, Any] = {}
    if node.STOCHASTIC_DEPTH >= 0:
        options["stochastic_depth_prob"] = node.STOCHASTIC_DEPTH
    # torchvision's default is the paper's for training on ImageNet: .1, .4, .5, .5 by size.
    network = SIZES[node.SIZE](weights=None, **options)
    return ConvNeXtBackbone(
        network.features,
        node.OUT_FEATURES,
        cfg.MODEL.BACKBONE.FREEZE_AT,
        node.GRADIENT_CHECKPOINTING,
    )


@BACKBONE_REGISTRY.register()
def build_convnext_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build an FPN over ConvNeXt, with p6 as in Detectron2's ResNet-FPN.

    Args:
        cfg: reads ``MODEL.FPN`` and what ``build_convnext_backbone`` reads.
        input_shape: see ``build_convnext_backbone``.
    """
    return build_fpn(cfg, build_convnext_backbone(cfg, input_shape))
