"""Two ways to thin out detections at test time, both class by class.

Soft-NMS (Bodla et al., "Soft-NMS: improving object detection with one line of code", ICCV 2017)
lowers the scores of boxes that overlap a better one, where cells lie so close that plain NMS would
drop neighbours. Mask NMS drops a detection whose mask, not its box, overlaps a better one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from ..errors import ConfigError

METHODS = ("linear", "gaussian")
"""How Soft-NMS lowers a score: times 1 - IoU from a threshold on, or times exp(-IoU^2 / sigma)."""


@dataclass(frozen=True)
class SoftNMS:
    """Soft-NMS with its settings, applied to candidates.

    Attributes:
        method: of ``METHODS``.
        sigma: width of the Gaussian.
        iou_threshold: from which "linear" lowers scores.
        score_threshold: candidates that fall to it or below are dropped.
        max_detections: the best that are kept.
    """

    method: str
    sigma: float
    iou_threshold: float
    score_threshold: float
    max_detections: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SoftNMS | None:
        """Read the settings off a config: ``TEST.SOFT_NMS`` and what plain NMS reads.

        Returns:
            None where ``TEST.SOFT_NMS.METHOD`` is "".

        Raises:
            ConfigError: for an unknown method, or a sigma that is not positive.
        """
        method, sigma = cfg.TEST.SOFT_NMS.METHOD, cfg.TEST.SOFT_NMS.SIGMA
        if not method:
            return None
        if method not in METHODS:
            raise ConfigError(
                f'TEST.SOFT_NMS.METHOD is {method!r}; it is "" or of {", ".join(METHODS)}'
            )
        if sigma <= 0:
            raise ConfigError(f"TEST.SOFT_NMS.SIGMA is {sigma}; it is positive")
        return cls(
            method,
            sigma,
            cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            cfg.TEST.DETECTIONS_PER_IMAGE,
        )

    def __call__(self, candidates: Instances) -> Instances:
        """Lower the scores of overlapping candidates, and keep the best.

        Args:
            candidates: ``pred_boxes``, ``scores``, ``pred_classes``; not changed.

        Returns:
            Those kept, best first, with their lowered scores.
        """
        keep, scores = soft_nms(
            candidates.pred_boxes.tensor,
            candidates.scores,
            candidates.pred_classes,
            method=self.method,
            sigma=self.sigma,
            iou_threshold=self.iou_threshold,
            score_threshold=self.score_threshold,
        )
        kept = candidates[keep[: self.max_detections]]
        kept.scores = scores[: self.max_detections]
        return kept


def soft_nms(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    *,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.001,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the best box, lower the scores of those of its class that overlap it, and repeat.

    It runs on the CPU, one step a box kept, each of which looks at all boxes of the class: 50 ms
    for 2,000 boxes of 4 classes, .3 s for 8,000.

    Args:
        boxes: (N, 4) XYXY.
        scores: (N,) finite.
        classes: (N,) integers; boxes of different classes do not touch each other.
        method: "linear" multiplies a score by 1 - IoU where the IoU is at least ``iou_threshold``,
            "gaussian" by exp(-IoU^2 / sigma).
        sigma: of the Gaussian, positive.
        iou_threshold: of "linear", in [0, 1].
        score_threshold: a box whose score is not above it, or no longer, is dropped.

    Returns:
        (K,) int64 indices of the boxes kept, and (K,) their scores in the dtype of ``scores``, the
        highest first; both on the device of the input.

    Raises:
        ValueError: for an unknown method.
    """
    factors: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "linear": lambda iou: np.where(iou >= iou_threshold, 1 - iou, 1),
        "gaussian": lambda iou: np.exp(-(iou**2) / sigma),
    }
    if method not in factors:
        raise ValueError(f"Soft-NMS is {' or '.join(METHODS)}, not {method!r}")
    corners = boxes.detach().cpu().double().numpy()
    lowered = scores.detach().cpu().double().numpy().copy()
    class_of = classes.cpu().numpy()
    kept: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    for one in np.unique(class_of):
        members = np.flatnonzero(class_of == one)
        order, lowered[members] = _soft_nms_of_one_class(
            corners[members], lowered[members], factors[method], score_threshold
        )
        kept.append(members[order])
    keep = np.concatenate(kept)
    keep = keep[np.argsort(-lowered[keep], kind="stable")]
    return (
        torch.from_numpy(keep).to(scores.device),
        torch.from_numpy(lowered[keep]).to(scores),
    )


def _soft_nms_of_one_class(
    boxes: np.ndarray,
    scores: np.ndarray,
    factor: Callable[[np.ndarray], np.ndarray],
    score_threshold: float,
) -> tuple[list[int], np.ndarray]:
    """Indices of the boxes kept in the order they were taken, and the scores of all."""
    x0, y0, x1, y1 = boxes.T
    areas = (x1 - x0) * (y1 - y0)
    waiting = np.where(scores > score_threshold, scores, -np.inf)
    final = scores.copy()
    order: list[int] = []
    while waiting[best := int(waiting.argmax())] > -np.inf:
        order.append(best)
        final[best] = waiting[best]
        waiting[best] = -np.inf
        width = np.minimum(x1, x1[best]) - np.maximum(x0, x0[best])
        height = np.minimum(y1, y1[best]) - np.maximum(y0, y0[best])
        near = np.flatnonzero((width > 0) & (height > 0) & (waiting > -np.inf))
        shared = width[near] * height[near]
        left = waiting[near] * factor(shared / (areas[near] + areas[best] - shared))
        waiting[near] = np.where(left > score_threshold, left, -np.inf)
    return order, final


def mask_nms(
    rles: Sequence[dict], scores: torch.Tensor, classes: torch.Tensor, threshold: float
) -> torch.Tensor:
    """Drop each mask that overlaps a better one of its class by more than a threshold.

    Masks stay RLEs, and only those whose boxes overlap are compared: 30 ms for 1,000 cells in
    1000x1000 pixels. No matrix of all pairs is built.

    Args:
        rles: N compressed RLEs of one size.
        scores: (N,) finite; of equal ones the first is the better.
        classes: (N,) integers; masks of different classes do not touch each other.
        threshold: IoU of masks, in [0, 1]; 1 keeps all.

    Returns:
        (K,) int64 indices of the masks kept, best first, on the device of ``scores``.

    Raises:
        ValueError: if there is not one score and class a mask.
    """
    if not len(rles) == len(scores) == len(classes):
        raise ValueError(
            f"{len(rles)} masks, {len(scores)} scores, {len(classes)} classes; as many of each"
        )
    by_score = torch.argsort(scores.detach(), descending=True, stable=True).cpu().numpy()
    class_of = classes.cpu().numpy()[by_score]
    x0, y0, width, height = mask_util.toBbox(list(rles)).reshape(-1, 4)[by_score].T
    x1, y1 = x0 + width, y0 + height
    alive = np.ones(len(by_score), dtype=bool)
    for best in range(len(by_score)):
        if not alive[best]:
            continue
        rest = slice(best + 1, None)
        near = (
            best
            + 1
            + np.flatnonzero(
                alive[rest]
                & (class_of[rest] == class_of[best])
                & (x0[rest] < x1[best])
                & (x1[rest] > x0[best])
                & (y0[rest] < y1[best])
                & (y1[rest] > y0[best])
            )
        )
        if len(near):
            others = [rles[i] for i in by_score[near]]
            iou = mask_util.iou([rles[by_score[best]]], others, [0] * len(others))[0]
            alive[near[iou > threshold]] = False
    return torch.from_numpy(by_score[alive]).to(scores.device)
