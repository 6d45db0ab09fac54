"""Class weights in the box head's classification loss, whichever RoI heads a model has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec, cross_entropy
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import nn

from ..errors import ConfigError


class ClassWeightedOutputLayers(FastRCNNOutputLayers):
    """``FastRCNNOutputLayers`` whose classification loss weighs the classes.

    ``loss_cls`` is the weighted mean over the sampled proposals, with y their true classes,

        sum_i w[y_i] * (-log p_i[y_i]) / sum_i w[y_i],

    which is ``torch.nn.functional.cross_entropy(scores, y, weight=w)``: weights shift the balance
    between classes, not the loss against the other losses. Layers, parameter names, the box loss
    and inference are upstream's.

    Args:
        plain: gives its layers and settings to the new one.
        weights: of the K classes, positive; background, the last column of the scores, has 1.
    """

    def __init__(self, plain: FastRCNNOutputLayers, weights: Sequence[float]) -> None:
        box_dim = len(plain.box2box_transform.weights)
        super().__init__(
            ShapeSpec(channels=plain.cls_score.in_features),
            box2box_transform=plain.box2box_transform,
            num_classes=plain.num_classes,
            test_score_thresh=plain.test_score_thresh,
            test_nms_thresh=plain.test_nms_thresh,
            test_topk_per_image=plain.test_topk_per_image,
            cls_agnostic_bbox_reg=plain.bbox_pred.out_features == box_dim,
            smooth_l1_beta=plain.smooth_l1_beta,
            box_reg_loss_type=plain.box_reg_loss_type,
            loss_weight=plain.loss_weight,
        )
        self.cls_score = plain.cls_score
        self.bbox_pred = plain.bbox_pred
        self.class_weights: torch.Tensor
        # Not saved: weights are the config's, and checkpoints fit with and without them.
        self.register_buffer(
            "class_weights", torch.tensor([*weights, 1.0], dtype=torch.float32), persistent=False
        )

    def losses(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """Compute the losses; see ``FastRCNNOutputLayers.losses``.

        Args:
            predictions: (N, K + 1) logits, and box deltas.
            proposals: of each image, N in all, with ``proposal_boxes``, ``gt_boxes`` and
                ``gt_classes`` (0 to K, K is background).

        Returns:
            ``loss_cls`` and ``loss_box_reg``, scalars.
        """
        losses = super().losses(predictions, proposals)
        scores = predictions[0].float()
        classes = torch.cat([item.gt_classes for item in proposals])
        # Upstream's wrapper of PyTorch's function: no proposals give 0, not a division by 0.
        loss = cross_entropy(scores, classes, reduction="mean", weight=self.class_weights)
        return losses | {"loss_cls": loss * self.loss_weight.get("loss_cls", 1.0)}


def weight_classes(roi_heads: nn.Module, weights: Sequence[float]) -> None:
    """Put class weights into every box predictor of a model's RoI heads.

    Works on what ``StandardROIHeads``, ``CascadeROIHeads`` (one predictor a stage) and
    ``Res5ROIHeads`` build, with no subclass of each.

    Args:
        roi_heads: changed in place.
        weights: of the K classes; none leaves the heads as they are.

    Raises:
        ConfigError: for weights that are not K positive numbers, or heads without a
            ``FastRCNNOutputLayers``.
    """
    if not weights:
        return
    if not all(isinstance(w, (int, float)) and 0 < w < math.inf for w in weights):
        raise ConfigError(
            f"MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS is {list(weights)}; weights are positive"
        )
    found = [
        (parent, name, child)
        for parent in list(roi_heads.modules())
        for name, child in parent.named_children()
        # Not its subclasses: what they do to the loss would be lost.
        if type(child) is FastRCNNOutputLayers
    ]
    if not found:
        raise ConfigError(
            f"MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS has no effect on {type(roi_heads).__name__}, which "
            "has no FastRCNNOutputLayers; set it to []"
        )
    for parent, name, plain in found:
        if len(weights) != plain.num_classes:
            raise ConfigError(
                f"MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS holds {len(weights)} weights, "
                f"MODEL.ROI_HEADS.NUM_CLASSES is {plain.num_classes}; make them equal"
            )
        setattr(parent, name, ClassWeightedOutputLayers(plain, weights))
