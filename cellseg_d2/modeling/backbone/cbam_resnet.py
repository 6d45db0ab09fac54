"""ResNet with a convolutional block attention module (CBAM) after chosen stages.

Woo, Park, Lee, Kweon: "CBAM: Convolutional Block Attention Module", ECCV 2018, arXiv:1807.06521.
The modules follow the paper's equations 1 to 3, which have no biases and no normalisation; the
authors' own code adds a bias to each layer of the MLP and a BatchNorm to the spatial convolution.
The paper puts one CBAM into every residual block, before the addition; here it follows a whole
stage, so what it scales is also what the next stage and the FPN read.

The two gates of a fresh CBAM are near 1/2, so a stage starts at about a quarter of its pretrained
output.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, ResNet, build_resnet_backbone
from torch import nn

from ...errors import ConfigError
from .fpn import build_fpn


class ChannelAttention(nn.Module):
    """Scale each channel by a gate that its mean and its maximum give (equation 2)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        """See ``MODEL.CBAM``.

        Args:
            channels: of the input.
            reduction: ``channels`` over the width of the hidden layer.
        """
        super().__init__()
        hidden = channels // reduction
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` (N, C, H, W) times its gates (N, C, 1, 1), each in (0, 1)."""
        logits = self.mlp(x.mean(dim=(2, 3))) + self.mlp(x.amax(dim=(2, 3)))
        return x * logits.sigmoid()[:, :, None, None]


class SpatialAttention(nn.Module):
    """Scale each pixel by a gate that the mean and maximum over channels give (equation 3)."""

    def __init__(self, kernel_size: int = 7) -> None:
        """See ``MODEL.CBAM``.

        Args:
            kernel_size: side of the convolution, odd.
        """
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` (N, C, H, W) times its gates (N, 1, H, W), each in (0, 1)."""
        pooled = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * self.conv(pooled).sigmoid()


class CBAM(nn.Sequential):
    """Channel attention, then spatial attention (equation 1); shapes stay as they are."""

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7) -> None:
        """See ``ChannelAttention`` and ``SpatialAttention``."""
        super().__init__()
        self.channel = ChannelAttention(channels, reduction)
        self.spatial = SpatialAttention(kernel_size)


class CBAMResNet(ResNet):
    """Detectron2's ResNet with modules ``cbam_res2`` … beside its stages.

    They are not part of the stages, so ResNet's parameters keep their names and ``freeze`` leaves
    the attention to train.
    """

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: list[list[CNNBlockBase]],
        *,
        out_features: Iterable[str],
        freeze_at: int = 0,
        attention_stages: Iterable[str] = ("res2", "res3", "res4", "res5"),
        reduction: int = 16,
        kernel_size: int = 7,
    ) -> None:
        """See ``ResNet`` for the first four arguments and ``MODEL.CBAM`` for the others.

        Raises:
            ConfigError: for a stage that is not built, or sizes that no CBAM can have.
        """
        super().__init__(stem, stages, out_features=list(out_features), freeze_at=freeze_at)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError(f"MODEL.CBAM.KERNEL_SIZE is {kernel_size}; it is odd and positive")
        for name in attention_stages:
            if name not in self.stage_names:
                raise ConfigError(
                    f"MODEL.CBAM.STAGES names {name!r}; this backbone has "
                    f"{', '.join(self.stage_names)} (MODEL.RESNETS.OUT_FEATURES sets the last)"
                )
            channels = self._out_feature_channels[name]
            if not 1 <= reduction <= channels:
                raise ConfigError(
                    f"MODEL.CBAM.REDUCTION is {reduction}; {name} has {channels} channels, so it "
                    f"lies between 1 and {channels}"
                )
            self.add_module(f"cbam_{name}", CBAM(channels, reduction, kernel_size))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the features.

        Args:
            x: (N, C, H, W), normalised images.

        Returns:
            For each of ``out_features`` a float tensor (N, C', H / stride, W / stride); that of a
            stage with attention is what the attention gives.
        """
        outputs = {}
        x = self.stem(x)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            x = stage(x)
            attention = getattr(self, f"cbam_{name}", None)
            if attention is not None:
                x = attention(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs


@BACKBONE_REGISTRY.register()
def build_cbam_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> CBAMResNet:
    """Build a ResNet or ResNeXt as ``build_resnet_backbone`` does, with attention.

    Args:
        cfg: reads ``MODEL.CBAM``, ``MODEL.RESNETS`` and ``MODEL.BACKBONE.FREEZE_AT``.
        input_shape: its ``channels`` are the image's.

    Raises:
        ConfigError: for values of ``MODEL.CBAM`` that do not fit the ResNet.
    """
    plain = build_resnet_backbone(cfg, input_shape)
    return CBAMResNet(
        plain.stem,
        [list(stage) for stage in plain.stages],
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        attention_stages=cfg.MODEL.CBAM.STAGES,
        reduction=cfg.MODEL.CBAM.REDUCTION,
        kernel_size=cfg.MODEL.CBAM.KERNEL_SIZE,
    )


@BACKBONE_REGISTRY.register()
def build_cbam_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build ``build_cbam_resnet_backbone`` under a feature pyramid; see ``build_fpn``.

    Raises:
        ConfigError: for values of ``MODEL.CBAM`` that do not fit the ResNet.
    """
    return build_fpn(cfg, build_cbam_resnet_backbone(cfg, input_shape))
