"""Two auxiliary heads that predict centres and boundaries of cells, for training only.

Each is conv(3x3)-ReLU-conv(1x1) on one feature of the backbone, whose gradient they reach; at test
time they are not run. Their targets come from ``cellseg_d2.data.target_generator``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from ..errors import ConfigError


class CenterBoundaryHead(nn.Module):
    """Predicts a centre map and a boundary map, and answers with their losses."""

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        in_channels: int,
        conv_dim: int,
        center_weight: float,
        boundary_weight: float,
    ) -> None:
        """See ``MODEL.CENTER_BOUNDARY_HEAD`` in ``cellseg_d2.config`` for the arguments.

        Args:
            in_feature: name of the backbone's feature that is read.
            in_channels: its channels.
            conv_dim: channels of each head's hidden layer.
            center_weight: what the loss of the centre map is multiplied by.
            boundary_weight: what the loss of the boundary map is multiplied by.
        """
        super().__init__()
        self.in_feature = in_feature
        self.center_weight = center_weight
        self.boundary_weight = boundary_weight
        self.center = _build_head(in_channels, conv_dim)
        self.boundary = _build_head(in_channels, conv_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read the arguments off a config.

        Args:
            cfg: reads ``MODEL.CENTER_BOUNDARY_HEAD``.
            input_shape: the backbone's features.

        Raises:
            ConfigError: where the backbone has no feature ``IN_FEATURE``.
        """
        head = cfg.MODEL.CENTER_BOUNDARY_HEAD
        if head.IN_FEATURE not in input_shape:
            raise ConfigError(
                f"MODEL.CENTER_BOUNDARY_HEAD.IN_FEATURE is {head.IN_FEATURE!r}; "
                f"{cfg.MODEL.BACKBONE.NAME} gives {', '.join(input_shape)}"
            )
        return {
            "in_feature": head.IN_FEATURE,
            "in_channels": input_shape[head.IN_FEATURE].channels,
            "conv_dim": head.CONV_DIM,
            "center_weight": head.CENTER_WEIGHT,
            "boundary_weight": head.BOUNDARY_WEIGHT,
        }

    def predict(self, features: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict both maps.

        Args:
            features: the backbone's; ``in_feature`` is (B, C, Hf, Wf).

        Returns:
            Logits of the centre map and of the boundary map, each (B, 1, Hf, Wf).
        """
        feature = features[self.in_feature]
        return self.center(feature), self.boundary(feature)

    def forward(
        self,
        features: dict[str, torch.Tensor],
        center_maps: Sequence[torch.Tensor],
        boundary_maps: Sequence[torch.Tensor],
        padded_size: tuple[int, int],
    ) -> dict[str, torch.Tensor]:
        """Compute the losses of a batch of B images.

        Args:
            features: see ``predict``.
            center_maps: B maps (Hi, Wi), values in [0, 1], each of its image's size.
            boundary_maps: B maps (Hi, Wi), 0 or 1.
            padded_size: height and width, in pixels, that all images were padded to at the right
                and the bottom before the backbone.

        Returns:
            ``loss_center`` and ``loss_boundary``, weighted.
        """
        center_logits, boundary_logits = self.predict(features)
        size = (center_logits.shape[2], center_logits.shape[3])
        # The padding shows nothing to learn from. In the mean, its easy pixels would lower an
        # image's loss by how much larger the other images of its batch are.
        valid = _resize([torch.ones_like(m) for m in center_maps], padded_size, size, "nearest")
        centers = _resize(center_maps, padded_size, size, "bilinear")
        boundaries = _resize(boundary_maps, padded_size, size, "nearest")
        return {
            "loss_center": self.center_weight * masked_bce(center_logits, centers, valid),
            "loss_boundary": self.boundary_weight * masked_bce(boundary_logits, boundaries, valid),
        }


def masked_bce(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Average the binary cross-entropy over the valid pixels of a batch.

    Args:
        logits: (B, 1, H, W).
        targets: (B, 1, H, W), values in [0, 1].
        valid: (B, 1, H, W), 1 where a pixel counts and 0 elsewhere; at least one counts.

    Returns:
        A scalar.
    """
    total = F.binary_cross_entropy_with_logits(logits, targets, weight=valid, reduction="sum")
    return total / valid.sum()


def _resize(
    maps: Sequence[torch.Tensor], padded_size: tuple[int, int], size: tuple[int, int], mode: str
) -> torch.Tensor:
    """Pad B maps with 0 to one size, and resize them to (B, 1, *size), float32.

    Pixels are areas, not grid points (``align_corners=False``). "bilinear" reads the four pixels
    around a target pixel's centre, "nearest" the one at its top left corner.
    """
    height, width = padded_size
    padded = [F.pad(m.float(), (0, width - m.shape[1], 0, height - m.shape[0])) for m in maps]
    align_corners = False if mode == "bilinear" else None
    return F.interpolate(torch.stack(padded)[:, None], size, mode=mode, align_corners=align_corners)


def _build_head(in_channels: int, conv_dim: int) -> nn.Sequential:
    hidden = Conv2d(in_channels, conv_dim, kernel_size=3, padding=1)
    predictor = Conv2d(conv_dim, 1, kernel_size=1)
    weight_init.c2_msra_fill(hidden)
    # As other predictors of Mask R-CNN: near 0, so that training starts at even odds.
    nn.init.normal_(predictor.weight, std=0.001)
    nn.init.zeros_(predictor.bias)
    return nn.Sequential(hidden, nn.ReLU(), predictor)
