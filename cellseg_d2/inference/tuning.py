"""Thresholds of a trained model, chosen on annotated images.

The model runs once for each NMS threshold, at the lowest score threshold and the highest cap, and
its answers are kept. Everything else is swept over the kept answers, in the order in which the
model applies it: a detection of a lower score, or beyond the cap, never takes a better one away, so
that what is left is what the model would have answered. One threshold is settled after the other.

Not where the masks' certainty counts in a score (``TEST.RESCORE.MASK``): the model caps by the
score before, which the answers no longer have. Then the cap stays as it is, and the rest holds, for
certainty only lowers a score.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detectron2.structures import Instances

from ..evaluation.coco import coco_scores
from ..evaluation.image_result import compare_image
from ..evaluation.panoptic_scores import panoptic_scores
from ..evaluation.records import coco_ground_truth, coco_predictions
from ..modeling.nms import mask_nms

logger = logging.getLogger(__name__)

TOLERANCE = 0.1
"""Percent points below the best that count as equal; of equals the setting of fewer cells wins."""

KEYS = {
    "nms": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "mask_nms": "TEST.MASK_NMS.THRESHOLD",
    "cap": "TEST.DETECTIONS_PER_IMAGE",
    "score": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "label_score": "TEST.PANOPTIC.SCORE_THRESHOLD",
}
"""Of the config, by the names of ``Thresholds``."""

SWEPT = ("mask_nms", "cap", "score")
"""The thresholds that are swept over kept answers, in this order."""

Answers = Sequence[Instances]


@dataclass(frozen=True)
class Thresholds:
    """What is tuned; ``KEYS`` says what each is in a config."""

    nms: float
    mask_nms: float
    cap: int
    score: float
    label_score: float


@dataclass(frozen=True)
class Grid:
    """The values that are tried, at least one of each; ascending, but for the NMS thresholds."""

    nms: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7)
    mask_nms: Sequence[float] = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
    cap: Sequence[int] = (100, 200, 300, 500, 1000, 2000)
    score: Sequence[float] = (0.01, 0.02, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
    label_score: Sequence[float] = tuple(round(0.05 * i, 2) for i in range(2, 19))


@dataclass(frozen=True)
class Trial:
    """One value of one threshold, and what came of it.

    Attributes:
        name: of the threshold.
        value: of the threshold.
        result: AP50 or, of ``label_score``, PQ in percent.
        cells: that were left in all images.
        chosen: whether this value was taken.
    """

    name: str
    value: float
    result: float
    cells: int
    chosen: bool = False

    @property
    def objective(self) -> str:
        """The score that decided, as an evaluation calls it."""
        return "panoptic/PQ" if self.name == "label_score" else "segm/AP50"


def tune(
    run_model: Callable[[float], Answers],
    dicts: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    start: Thresholds,
    grid: Grid,
    *,
    swept: Sequence[str] = SWEPT,
) -> tuple[Thresholds, list[Trial]]:
    """Choose thresholds one after the other.

    ``segm/AP50`` decides on NMS, mask NMS, the cap and the score threshold, in this order;
    ``panoptic/PQ`` on the score from which cells belong to a label map. Of NMS and label maps the
    best value is taken. Of mask NMS and the score it is the one that leaves the fewest cells among
    those within ``TOLERANCE`` of the best, since AP alone would never drop a cell; of the caps it
    is the highest of these, for images that hold more cells.

    Args:
        run_model: from an NMS threshold to the answers for all images, in the order of ``dicts``:
            for ``SWEPT`` without mask NMS, with the scores above ``grid.score[0]`` and the best
            ``grid.cap[-1]`` cells; as ``start`` says for what is not swept.
        dicts: annotated images.
        class_names: of each category.
        start: the values to start with; those of what is not tuned stay.
        grid: the values to try.
        swept: which of ``SWEPT`` are tuned. Answers of several views, models or tiles are merged
            after all of these: then none, and only NMS and the label maps' threshold are.

    Returns:
        The thresholds, and all trials in order.
    """
    judge = _Judge(dicts, class_names)
    trials: list[Trial] = []
    best: Answers = []
    highest = float("-inf")
    loosest: dict[str, Any] = {"mask_nms": 1.0, "cap": grid.cap[-1], "score": grid.score[0]}
    thresholds = replace(start, **{name: loosest[name] for name in swept})
    for nms in grid.nms:
        answers = run_model(nms)
        trial = judge.by_ap50("nms", nms, answers)
        trials.append(trial)
        if trial.result > highest:
            highest, best, thresholds = trial.result, answers, replace(thresholds, nms=nms)
    trials = [replace(trial, chosen=trial.value == thresholds.nms) for trial in trials]
    logger.info("NMS %g: AP50 %.1f", thresholds.nms, highest)

    for name in swept:
        tried = []
        for value in getattr(grid, name):
            shown = _apply(best, _changed(thresholds, name, value))
            tried.append(judge.by_ap50(name, value, shown))
        # A cap saves nothing where cells are few, and takes from images that hold more than these.
        choose = _highest if name == "cap" else _fewest_cells
        chosen = choose(tried, TOLERANCE)
        thresholds = _changed(thresholds, name, chosen.value)
        trials += [replace(trial, chosen=trial is chosen) for trial in tried]
        logger.info("%s %g: AP50 %.1f", KEYS[name], chosen.value, chosen.result)

    shown = _apply(best, thresholds) if swept else best
    tried = [judge.by_pq(value, shown) for value in grid.label_score]
    chosen = _fewest_cells(tried, 0)
    trials += [replace(trial, chosen=trial is chosen) for trial in tried]
    return replace(thresholds, label_score=chosen.value), trials


def apply_thresholds(answer: Instances, score: float, cap: int, mask_threshold: float) -> Instances:
    """Thin out an answer as the model does: by score, then the cap, then mask NMS.

    Args:
        answer: best score first.
        score: what is not above it is dropped.
        cap: the best that are kept.
        mask_threshold: see ``mask_nms``; 1 keeps all.
    """
    answer = answer[answer.scores > score][:cap]
    if mask_threshold == 1:
        return answer
    keep = mask_nms(answer.pred_masks.rles, answer.scores, answer.pred_classes, mask_threshold)
    return answer[keep]


def _apply(answers: Answers, thresholds: Thresholds) -> Answers:
    return [
        apply_thresholds(answer, thresholds.score, thresholds.cap, thresholds.mask_nms)
        for answer in answers
    ]


def _changed(thresholds: Thresholds, name: str, value: Any) -> Thresholds:
    return replace(thresholds, **{name: value})


def _fewest_cells(trials: Sequence[Trial], tolerance: float) -> Trial:
    best = max(trial.result for trial in trials)
    equal = [trial for trial in trials if trial.result >= best - tolerance]
    return min(equal, key=lambda trial: trial.cells)


def _highest(trials: Sequence[Trial], tolerance: float) -> Trial:
    best = max(trial.result for trial in trials)
    return max((t for t in trials if t.result >= best - tolerance), key=lambda trial: trial.value)


class _Judge:
    """Measures answers to the images against their annotations."""

    def __init__(self, dicts: Sequence[dict[str, Any]], class_names: Sequence[str]) -> None:
        self.dicts, self.class_names = dicts, class_names
        self.ground_truth = coco_ground_truth(dicts)

    def by_ap50(self, name: str, value: float, answers: Answers) -> Trial:
        """Average precision of masks at IoU .5."""
        predictions = [
            prediction
            for item, answer in zip(self.dicts, answers, strict=True)
            for prediction in coco_predictions(answer, item["image_id"])
        ]
        # The answers are capped already.
        most = max((len(answer) for answer in answers), default=1) or 1
        scores = coco_scores(*self.ground_truth, predictions, self.class_names, "segm", most)
        return Trial(name, value, scores["AP50"], len(predictions))

    def by_pq(self, value: float, answers: Answers) -> Trial:
        """Panoptic quality of the label maps of cells from a score on."""
        compared = [
            compare_image(
                item, coco_predictions(answer, item["image_id"]), len(self.class_names), value
            )
            for item, answer in zip(self.dicts, answers, strict=True)
        ]
        result = panoptic_scores(compared, self.class_names)["PQ"]
        cells = sum(int((answer.scores >= value).sum()) for answer in answers)
        return Trial("label_score", value, result, cells)
