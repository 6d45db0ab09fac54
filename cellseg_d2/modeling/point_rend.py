"""PointRend (Kirillov et al., CVPR 2020) on label maps.

Upstream's head samples the labels of points from bitmaps, one of the image's size per RoI. Here the
instance's id is looked up in the label map at the four pixels around each point.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference
from detectron2.projects.point_rend import PointRendMaskHead
from detectron2.projects.point_rend.mask_head import calculate_uncertainty
from detectron2.projects.point_rend.point_features import (
    get_point_coords_wrt_image,
    get_uncertain_point_coords_with_randomness,
)
from detectron2.projects.point_rend.point_head import StandardPointHead, roi_mask_point_loss
from detectron2.structures import Boxes, Instances

from ..errors import ConfigError
from ..structures import LabelMasks
from .losses import build_mask_loss
from .mask_head import roi_mask_loss, true_class_logits
from .point_inference import PointRefiner


@ROI_MASK_HEAD_REGISTRY.register()
class CellPointRendMaskHead(PointRendMaskHead):
    """``PointRendMaskHead`` whose ground truth is ``LabelMasks``.

    ``MODEL.ROI_MASK_HEAD.LOSS`` is the loss of the coarse masks and of the points; with "bce" both
    are upstream's. Layers and parameter names are upstream's. With
    ``MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK``, which upstream's does not read, they are those of its
    head for a single class.
    """

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        """Build the head.

        Args:
            cfg: reads ``MODEL.ROI_MASK_HEAD`` and ``MODEL.POINT_HEAD``.
            input_shape: of each feature map.

        Raises:
            ConfigError: ``MODEL.POINT_HEAD.NAME`` is not ``StandardPointHead``.
        """
        if cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.POINT_HEAD.NUM_CLASSES = 1
        super().__init__(cfg, input_shape)
        if self.mask_point_on and type(self.point_head) is not StandardPointHead:
            raise ConfigError(
                f"MODEL.POINT_HEAD.NAME is {cfg.MODEL.POINT_HEAD.NAME!r}; {type(self).__name__} "
                "works with StandardPointHead alone"
            )
        self.loss = build_mask_loss(cfg)
        self.vis_period = cfg.VIS_PERIOD

    def forward(self, features: dict[str, torch.Tensor], instances: list[Instances]) -> Any:
        """Train or predict.

        Args:
            features: (B, C, H, W) by name.
            instances: of each image: foreground proposals with ``proposal_boxes``, ``gt_classes``
                and ``gt_masks: LabelMasks`` in training, else detections.

        Returns:
            In training ``loss_mask`` and ``loss_mask_point``, scalars; else the detections with
            ``pred_masks``, (n, 1, M, M) probabilities.
        """
        if not self.training:
            return super().forward(features, instances)
        boxes = [item.proposal_boxes for item in instances]
        coarse = self.coarse_head(self._roi_pooler(features, boxes))
        losses = {"loss_mask": roi_mask_loss(coarse, instances, self.loss, self.vis_period)}
        if self.mask_point_on:
            points, labels = self._sample_train_points(coarse, instances)
            fine = self._point_pooler(features, boxes, points)
            logits = self._get_point_logits(fine, points, coarse)
            losses["loss_mask_point"] = self._point_loss(logits, instances, labels)
        return losses

    def _point_loss(
        self, logits: torch.Tensor, instances: list[Instances], labels: torch.Tensor
    ) -> torch.Tensor:
        """Compare (N, C, P) logits with (N, P) labels in [0, 1], and log upstream's accuracy."""
        if len(logits) == 0:
            return self.loss(logits[:, 0], labels)
        with torch.no_grad():
            roi_mask_point_loss(logits, instances, labels)
        return self.loss(true_class_logits(logits, instances), labels)

    def _sample_train_points(
        self, coarse_mask: torch.Tensor, instances: list[Instances]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the points to train on, most of them where the coarse mask is unsure.

        Returns:
            (N, P, 2) points x, y in [0, 1] of their boxes, and (N, P) labels in [0, 1].
        """
        classes = torch.cat([item.gt_classes for item in instances])
        with torch.no_grad():
            points = get_uncertain_point_coords_with_randomness(
                coarse_mask,
                lambda logits: calculate_uncertainty(logits, classes),
                self.mask_point_train_num_points,
                self.mask_point_oversample_ratio,
                self.mask_point_importance_sample_ratio,
            )
            boxes = Boxes.cat([item.proposal_boxes for item in instances])
            in_image = get_point_coords_wrt_image(boxes.tensor, points)
            # Upstream gives proposals of an image without instances no masks at all.
            labels = [points.new_zeros(0, points.shape[1])]
            parts = in_image.split([len(item) for item in instances])
            for item, part in zip(instances, parts, strict=True):
                if len(item):
                    labels.append(sample_point_labels(item.gt_masks, part))
        return points, torch.cat(labels)

    @torch.no_grad()
    def _subdivision_inference(
        self,
        features: dict[str, torch.Tensor],
        mask_representations: torch.Tensor,
        instances: list[Instances],
    ) -> list[Instances]:
        """Set ``pred_masks``, from the coarse masks alone where the point head is off."""
        if not self.mask_point_on:
            mask_rcnn_inference(mask_representations, instances)
            return instances
        names = self.mask_point_in_features
        scales = [self._feature_scales[name] for name in names]
        coarse_masks = mask_representations.split([len(item) for item in instances])
        for index, (item, coarse) in enumerate(zip(instances, coarse_masks, strict=True)):
            here = [features[name][index : index + 1] for name in names]
            logits = PointRefiner(self.point_head, here, scales).refine(
                coarse,
                item.pred_boxes,
                item.pred_classes,
                resolution=self.mask_point_subdivision_init_resolution,
                steps=self.mask_point_subdivision_steps,
                num_points=self.mask_point_subdivision_num_points,
            )
            mask_rcnn_inference(logits, [item])
        return instances


def sample_point_labels(masks: LabelMasks, points: torch.Tensor) -> torch.Tensor:
    """Sample each instance's mask at its points, bilinearly; outside the image is background.

    Equal to ``point_features.sample_point_labels`` on the instances' bitmaps, which calls
    ``grid_sample(align_corners=False)``, without those bitmaps: to the bit where its kernel fuses
    multiplication and addition, as CUDA's and current CPUs' do. Elsewhere a position is off by its
    last bit, 3e-5 px at 500 px.

    Args:
        masks: of N instances.
        points: (N, P, 2) x, y in pixels, where the image spans [0, W] x [0, H]; float32.

    Returns:
        (N, P) float32 in [0, 1].
    """
    height, width = masks.image_size
    x, x_weight = _positions(points[..., 0], width)
    y, y_weight = _positions(points[..., 1], height)
    layers, ids = masks.layers[:, None], masks.ids[:, None]
    labels = torch.zeros_like(x_weight)
    # The kernel's order of arithmetic: rows from above, in each the left pixel first.
    for step_y, weight_y in ((0, 1 - y_weight), (1, y_weight)):
        row = y + step_y
        for step_x, weight_x in ((0, 1 - x_weight), (1, x_weight)):
            column = x + step_x
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            found = masks.label_maps[layers, row.clamp(0, height - 1), column.clamp(0, width - 1)]
            labels += weight_y * weight_x * (inside & (found == ids))
    return labels


def _positions(coordinates: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where points lie between pixel centers along an axis, with ``grid_sample``'s roundings.

    Returns:
        The pixel whose center is at or before each point, int64, and the distance from it in
        pixels, float32.
    """
    size = torch.tensor(length, dtype=coordinates.dtype, device=coordinates.device)
    normalized = 2.0 * (coordinates / size) - 1.0
    # A fused multiplication and addition: float64 holds the product, and rounding comes last.
    position = ((normalized + 1).double() * (length / 2) - 0.5).to(coordinates.dtype)
    pixel = position.floor()
    return pixel.long(), position - pixel
