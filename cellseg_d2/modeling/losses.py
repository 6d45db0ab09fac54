"""Losses of predicted masks, as pure functions of (logits, targets).

Dice is that of Milletari et al., "V-Net", 3DV 2016, with plain sums in the denominator where the
paper squares them. So Tversky's (Salehi et al., "Tversky loss function for image segmentation using
3D fully convolutional deep networks", MLMI 2017) equals it at alpha = beta = 1/2, as that paper
says. Both get one pixel of smoothing: an empty target that is predicted empty costs nothing, and no
quotient is 0 / 0.

Every loss is a mean over instances, computed in float32 or, of float64 logits, in float64; none
is left to autocast, for half precision cannot hold a sum of a thousand probabilities. Without
instances a loss is a zero that keeps the graph, so that all processes of a distributed run get a
gradient for the same parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode

from ..errors import ConfigError

MaskLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits, targets) -> scalar."""

SMOOTHING = 1.0
"""Pixels added to Dice's numerator and denominator."""


def bce(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy, the mean over pixels and instances.

    Args:
        logits: (N, M, M) or (N, P) of a floating dtype.
        targets: bool or float in [0, 1], of the same shape.

    Returns:
        A scalar, at least 0.

    Raises:
        ValueError: if the shapes differ.
    """
    logits, targets = _in_full_precision(logits, targets)
    if len(logits) == 0:
        return logits.sum()
    return F.binary_cross_entropy_with_logits(logits, targets)


def dice(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return 1 - (2 Σpg + s) / (Σp + Σg + s) of each instance, the mean over instances.

    p is the sigmoid of the logits, g the target, s ``SMOOTHING``.

    Args:
        logits: (N, M, M) or (N, P) of a floating dtype.
        targets: bool or float in [0, 1], of the same shape.

    Returns:
        A scalar in [0, 1).

    Raises:
        ValueError: if the shapes differ.
    """
    return tversky(logits, targets, 0.5, 0.5)


def tversky(
    logits: torch.Tensor, targets: torch.Tensor, alpha: float = 0.5, beta: float = 0.5
) -> torch.Tensor:
    """Return 1 - (TP + s/2) / (TP + alpha FP + beta FN + s/2) of each instance, the mean over them.

    TP = Σpg, FP = Σp(1 - g), FN = Σ(1 - p)g with p the sigmoid of the logits, g the target; s is
    ``SMOOTHING``, and half of it here is what Dice has. Beta above alpha prefers masks that are too
    large to such that are too small.

    Args:
        logits: (N, M, M) or (N, P) of a floating dtype.
        targets: bool or float in [0, 1], of the same shape.
        alpha: weight of false positives, at least 0.
        beta: weight of false negatives, at least 0.

    Returns:
        A scalar in [0, 1).

    Raises:
        ValueError: if the shapes differ.
    """
    logits, targets = _in_full_precision(logits, targets)
    if len(logits) == 0:
        return logits.sum()
    probabilities, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    hit = (probabilities * targets).sum(dim=1)
    false_positive = (probabilities * (1 - targets)).sum(dim=1)
    false_negative = ((1 - probabilities) * targets).sum(dim=1)
    similarity = (hit + SMOOTHING / 2) / (
        hit + alpha * false_positive + beta * false_negative + SMOOTHING / 2
    )
    return (1 - similarity).mean()


def bce_dice(
    logits: torch.Tensor,
    targets: torch.Tensor,
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
) -> torch.Tensor:
    """Return the weighted sum of ``bce`` and ``dice``.

    Args:
        logits: (N, M, M) or (N, P) of a floating dtype.
        targets: bool or float in [0, 1], of the same shape.
        bce_weight: of the cross-entropy.
        dice_weight: of Dice.

    Raises:
        ValueError: if the shapes differ.
    """
    return bce_weight * bce(logits, targets) + dice_weight * dice(logits, targets)


def build_mask_loss(cfg: CfgNode) -> MaskLoss:
    """Return the loss that ``MODEL.ROI_MASK_HEAD.LOSS`` names, with its weights bound.

    Args:
        cfg: reads ``LOSS``, ``LOSS_WEIGHTS``, ``TVERSKY_ALPHA`` and ``TVERSKY_BETA``.

    Raises:
        ConfigError: for an unknown name, or weights that make no loss.
    """
    head = cfg.MODEL.ROI_MASK_HEAD
    weights, alpha, beta = head.LOSS_WEIGHTS, head.TVERSKY_ALPHA, head.TVERSKY_BETA
    if len(weights) != 2 or min(weights) < 0:
        raise ConfigError(
            f"MODEL.ROI_MASK_HEAD.LOSS_WEIGHTS is {weights}; it holds two weights, of BCE and "
            "Dice, none negative"
        )
    if min(alpha, beta) < 0:
        raise ConfigError(
            f"MODEL.ROI_MASK_HEAD.TVERSKY_ALPHA, TVERSKY_BETA are {alpha}, {beta}; none is negative"
        )
    losses: dict[str, MaskLoss] = {
        "bce": bce,
        "dice": dice,
        "bce_dice": functools.partial(bce_dice, bce_weight=weights[0], dice_weight=weights[1]),
        "tversky": functools.partial(tversky, alpha=alpha, beta=beta),
    }
    if head.LOSS not in losses:
        raise ConfigError(
            f"MODEL.ROI_MASK_HEAD.LOSS is {head.LOSS!r}; known losses: {', '.join(losses)}"
        )
    return losses[head.LOSS]


def _in_full_precision(
    logits: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if logits.shape != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ in shape"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits, targets.to(logits.dtype)
