"""Mask R-CNN's mask head (He et al., ICCV 2017) with a loss chosen by config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import (
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detectron2.structures import Boxes, Instances

from .losses import MaskLoss, build_mask_loss

ROIS_AT_A_TIME = 128
"""RoIs whose masks are predicted together: 100 MB of features in the last layer of 256 channels.
A thousand cells at once would take 800 MB, and longer for it."""


@ROI_MASK_HEAD_REGISTRY.register()
class CellMaskHead(MaskRCNNConvUpsampleHead):
    """``MaskRCNNConvUpsampleHead`` trained with ``MODEL.ROI_MASK_HEAD.LOSS``.

    Layers, parameter names and inference are upstream's; with "bce" the loss is, too, to the bit.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, loss: MaskLoss, **arguments: Any) -> None:
        """Build the head.

        Args:
            input_shape: of the pooled features.
            loss: of (N, M, M) logits and bool targets.
            arguments: those of ``MaskRCNNConvUpsampleHead``.
        """
        super().__init__(input_shape, **arguments)
        self.loss = loss

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read the arguments off a config."""
        return super().from_config(cfg, input_shape) | {"loss": build_mask_loss(cfg)}

    def forward(self, x: torch.Tensor, instances: list[Instances]) -> Any:
        """Train or predict.

        Args:
            x: (N, C, H, W), features of all instances of the batch.
            instances: foreground proposals with ``proposal_boxes``, ``gt_classes`` and
                ``gt_masks`` in training, else detections.

        Returns:
            In training ``{"loss_mask": scalar}``; else the detections with ``pred_masks``,
            (n, 1, M, M) probabilities.
        """
        if not self.training:
            parts = x.tensor_split(math.ceil(len(x) / ROIS_AT_A_TIME) or 1)
            mask_rcnn_inference(torch.cat([self.layers(part) for part in parts]), instances)
            return instances
        loss = roi_mask_loss(self.layers(x), instances, self.loss, self.vis_period)
        return {"loss_mask": loss * self.loss_weight}


def roi_mask_loss(
    logits: torch.Tensor, instances: list[Instances], loss: MaskLoss, vis_period: int = 0
) -> torch.Tensor:
    """Compare each RoI's mask of its true class with the ground truth under its box.

    What ``mask_rcnn_loss`` logs (``mask_rcnn/accuracy`` and others) is logged.

    Args:
        logits: (N, C, M, M), or (N, 1, M, M) where the masks are class-agnostic.
        instances: of each image, N in all; ``proposal_boxes``, ``gt_classes``, ``gt_masks``.
        loss: of (N, M, M) logits and bool targets.
        vis_period: iterations between pictures of masks in the log; 0 for none.

    Returns:
        A scalar.
    """
    occupied = [item for item in instances if len(item)]
    if not occupied:
        return loss(logits[:, 0], logits[:, 0])
    targets = [
        item.gt_masks.crop_and_resize(item.proposal_boxes.tensor, logits.shape[-1])
        for item in occupied
    ]
    # Upstream's function makes the log from the same targets; its loss is not used.
    with torch.no_grad():
        prepared = [_with_targets(item, part) for item, part in zip(occupied, targets, strict=True)]
        mask_rcnn_loss(logits, prepared, vis_period)
    return loss(true_class_logits(logits, occupied), torch.cat(targets).to(logits.device))


def true_class_logits(logits: torch.Tensor, instances: Sequence[Instances]) -> torch.Tensor:
    """Select each instance's channel.

    Args:
        logits: (N, C, ...), or (N, 1, ...) where the masks are class-agnostic.
        instances: at least one, N in all; ``gt_classes``.

    Returns:
        (N, ...)
    """
    if logits.shape[1] == 1:
        return logits[:, 0]
    classes = torch.cat([item.gt_classes for item in instances])
    return logits[torch.arange(len(logits), device=classes.device), classes]


class _CroppedMasks:
    """Mask targets that have been made, in place of the masks they come from."""

    def __init__(self, targets: torch.Tensor) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def crop_and_resize(self, boxes: Boxes, mask_size: int) -> torch.Tensor:
        return self.targets


def _with_targets(instances: Instances, targets: torch.Tensor) -> Instances:
    return Instances(
        instances.image_size,
        proposal_boxes=instances.proposal_boxes,
        gt_classes=instances.gt_classes,
        gt_masks=_CroppedMasks(targets),
    )
