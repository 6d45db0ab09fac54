"""Several answers to one image become one: weighted fusion of boxes and masks, or mask NMS.

Fusion is weighted boxes fusion (Solovyev, Wang, Gabruseva, "Weighted boxes fusion: Ensembling boxes
from different object detection models", Image and Vision Computing 2021, arXiv 1910.13302), where
the IoU is that of masks, and a pixel belongs to the fused mask by a vote. Masks stay run lengths
throughout: 8 answers of 1,000 cells each become one in a second (``tools/benchmark.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from ..modeling.nms import mask_nms
from ..structures import RLEMasks
from ..structures.run_decoding import decode_runs
from .clusters import cluster_masks

METHODS = ("fusion", "nms")
"""How answers are merged."""


def merge_answers(
    answers: Sequence[Instances], *, method: str, threshold: float, max_detections: int
) -> Instances:
    """Make one answer of several to the same image.

    Cells without a pixel or of score 0 are left out.

    Args:
        answers: T of them, each with ``pred_boxes``, ``scores`` in [0, 1], ``pred_classes`` and
            ``pred_masks`` (``RLEMasks``), on the CPU; at least one.
        method: of ``METHODS``; "fusion" is ``fuse_answers``, "nms" keeps the better of two masks
            of one class.
        threshold: IoU of masks, in (0, 1], from which two are the same cell.
        max_detections: the best that are kept.

    Returns:
        The cells, best score first.

    Raises:
        ValueError: for an unknown method, a threshold out of range, no answers, or answers to
            images of different sizes.
    """
    if method not in METHODS:
        raise ValueError(f"answers are merged by {' or '.join(METHODS)}, not {method!r}")
    if method == "fusion":
        return fuse_answers(answers, threshold)[:max_detections]
    cells = _all_cells(answers, threshold)
    # Mask NMS drops what lies above its threshold, not on it.
    keep = mask_nms(
        cells.pred_masks.rles, cells.scores, cells.pred_classes, math.nextafter(threshold, 0)
    )
    return cells[keep[:max_detections]]


def fuse_answers(answers: Sequence[Instances], threshold: float) -> Instances:
    """Fuse the cells that several answers agree on.

    Cells are taken by falling score. Each joins the cluster of its class whose fused mask overlaps
    its own most, if by ``threshold`` or more, or else begins a cluster. A cluster of n cells with
    scores s becomes one cell:

    - its box is the mean of their boxes weighted by s;
    - its mask holds the pixels that cells of at least half of sum(s) hold;
    - its score is mean(s) * min(n, T) / T, which is low for what few of the T answers saw.

    Args:
        answers: see ``merge_answers``.
        threshold: see ``merge_answers``.

    Returns:
        The fused cells, best score first, with the four fields.

    Raises:
        ValueError: see ``merge_answers``.
    """
    cells = _all_cells(answers, threshold)
    order = torch.argsort(cells.scores, descending=True, stable=True)
    cells = cells[order]
    runs = decode_runs(cells.pred_masks.rles, cells.image_size)
    scores = cells.scores.double().numpy()
    clusters, fused_runs = cluster_masks(runs, cells.pred_classes.numpy(), scores, threshold)

    count = len(fused_runs)
    members = np.bincount(clusters, minlength=count)
    total = np.bincount(clusters, scores, count)
    boxes = np.zeros((count, 4))
    np.add.at(boxes, clusters, cells.pred_boxes.tensor.double().numpy() * scores[:, None])
    fused_scores = total / members * np.minimum(members, len(answers)) / len(answers)
    # A cluster's first cell is its best.
    _, first = np.unique(clusters, return_index=True)
    fused = Instances(
        cells.image_size,
        pred_boxes=Boxes(torch.from_numpy(boxes / total[:, None]).float()),
        scores=torch.from_numpy(fused_scores).to(cells.scores.dtype),
        pred_classes=cells.pred_classes[torch.from_numpy(first)],
        pred_masks=RLEMasks(fused_runs.rles(), cells.image_size),
    )
    return fused[torch.argsort(fused.scores, descending=True, stable=True)]


def _all_cells(answers: Sequence[Instances], threshold: float) -> Instances:
    """Put all answers' cells of at least a pixel into one, in the order of the answers."""
    if not 0 < threshold <= 1:
        raise ValueError(f"an IoU from which masks are the same cell is in (0, 1], not {threshold}")
    if len({answer.image_size for answer in answers}) != 1:
        raise ValueError("answers are merged that are to one image; there is none, or of many")
    fields = ("pred_boxes", "scores", "pred_classes", "pred_masks")
    cells = Instances.cat(
        [Instances(a.image_size, **{name: a.get(name) for name in fields}) for a in answers]
    )
    runs = decode_runs(cells.pred_masks.rles, cells.image_size)
    # A score of 0 has no weight to take part with.
    return cells[torch.from_numpy(np.diff(runs.offsets) > 0) & (cells.scores > 0)]
