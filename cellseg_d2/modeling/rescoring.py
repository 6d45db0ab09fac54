"""Scores that ask more than which class: is it a cell at all, and is its outline sure?

A box head's score says how likely a class is, given a proposal. In sparse tissue, and in tiles of
it, proposals of little objectness so become detections that the label map shows. Two factors, each
with an exponent:

    score = p ** (1 - a) * objectness ** a * certainty ** b

p is the box head's probability of the class; in a cascade p ** (1 - a) is the mean of the stages'
own, each of which is weighed. With a = 1/2 the first two are the geometric mean of the two stages'
answers (Zhou et al., "Probabilistic two-stage detection", arXiv 2103.07461, 2021). The
certainty is the mean probability of the pixels within the mask (Wang et al., "SOLO: segmenting
objects by locations", ECCV 2020, call it maskness); it ranks a mask with clear edges above a
blurred one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import nn

from ..errors import ConfigError


@dataclass(frozen=True)
class Rescoring:
    """The exponents, and what becomes of detections that they leave little of.

    Attributes:
        objectness: a, in [0, 1).
        mask: b, at least 0.
        score_threshold: detections that fall to it or below are dropped.
    """

    objectness: float
    mask: float
    score_threshold: float

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Rescoring:
        """Read ``TEST.RESCORE`` and ``MODEL.ROI_HEADS.SCORE_THRESH_TEST``.

        Raises:
            ConfigError: for an exponent out of its range.
        """
        objectness, mask = cfg.TEST.RESCORE.OBJECTNESS, cfg.TEST.RESCORE.MASK
        if not 0 <= objectness < 1:
            raise ConfigError(f"TEST.RESCORE.OBJECTNESS is {objectness}; it lies in [0, 1)")
        if mask < 0:
            raise ConfigError(f"TEST.RESCORE.MASK is {mask}; it is 0 or more")
        return cls(objectness, mask, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST)

    def weigh_masks(self, instances: Instances, mask_threshold: float) -> Instances:
        """Multiply scores by the certainty of the masks.

        Args:
            instances: N, with ``scores`` and ``pred_masks`` (N, 1, M, M), probabilities; not
                changed. Without masks, or with an exponent of 0, they are returned as they are.
            mask_threshold: probability from which a pixel belongs to a mask.

        Returns:
            Those above the score threshold, best score first.
        """
        if self.mask == 0 or not instances.has("pred_masks"):
            return instances
        scores = (
            instances.scores * mask_certainty(instances.pred_masks, mask_threshold) ** self.mask
        )
        order = torch.argsort(scores, descending=True, stable=True)
        order = order[scores[order] > self.score_threshold]
        weighed = instances[order]
        weighed.scores = scores[order]
        return weighed


def mask_certainty(masks: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return the mean probability of each mask's pixels.

    Args:
        masks: (N, 1, M, M), probabilities.
        threshold: from which a pixel belongs to the mask.

    Returns:
        (N,) float32, from the threshold to 1; 0 for a mask without a pixel.
    """
    probabilities = masks.float().flatten(1)
    inside = probabilities >= threshold
    return (probabilities * inside).sum(1) / inside.sum(1).clamp(min=1)


def weigh_objectness(roi_heads: nn.Module, exponent: float) -> None:
    """Let a model's box predictors weigh their scores by the proposals' objectness at test time.

    Works on what ``StandardROIHeads``, ``CascadeROIHeads`` (of whose stages only the first is given
    the proposals) and ``Res5ROIHeads`` build, with no subclass of each.

    Args:
        roi_heads: changed in place; called with proposals that have ``objectness_logits``.
        exponent: a, in [0, 1); 0 leaves the heads as they are.

    Raises:
        ConfigError: for heads without a ``FastRCNNOutputLayers``.
    """
    if exponent == 0:
        return
    predictors = [m for m in roi_heads.modules() if isinstance(m, FastRCNNOutputLayers)]
    if not predictors:
        raise ConfigError(
            f"TEST.RESCORE.OBJECTNESS has no effect on {type(roi_heads).__name__}, which has no "
            "FastRCNNOutputLayers; set it to 0"
        )
    weighting = _Weighting(exponent)
    roi_heads.register_forward_pre_hook(weighting.remember)
    for predictor in predictors:
        # Bound methods and no closures: a copy of the model then has a weighting of its own.
        predictor.predict_probs = functools.partial(weighting.weigh, predictor.predict_probs)


class _Weighting:
    """Carries the objectness from the call of the RoI heads to their box predictors."""

    def __init__(self, exponent: float) -> None:
        self.exponent = exponent
        self.objectness: list[torch.Tensor] = []

    def remember(self, roi_heads: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Be the hook before the RoI heads' ``forward(images, features, proposals, …)``."""
        if not roi_heads.training:
            proposals = arguments[2]
            self.objectness = [item.objectness_logits.float().sigmoid() for item in proposals]

    def weigh(
        self,
        predict_probs: Callable[..., Sequence[torch.Tensor]],
        predictions: tuple[torch.Tensor, torch.Tensor],
        proposals: list[Instances],
    ) -> list[torch.Tensor]:
        """Be ``FastRCNNOutputLayers.predict_probs``; (R_i, K + 1) for each image."""
        return [
            probabilities ** (1 - self.exponent) * objectness[:, None] ** self.exponent
            for probabilities, objectness in zip(
                predict_probs(predictions, proposals), self.objectness, strict=True
            )
        ]
