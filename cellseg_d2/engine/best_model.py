"""The best model of a training by one of its scores, and when to stop for lack of a better one."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from ..checkpoint import CellCheckpointer
from ..errors import ConfigError
from ..evaluation import coco_scores
from ..evaluation.panoptic_scores import panoptic_scores
from .ema import WeightAverage

logger = logging.getLogger(__name__)

BEST_MODEL = "model_best"
"""Name of its file."""

AVERAGED, TRAINING = "ema/", "train/"
"""What begins the tasks of the averaged weights, and those of the sample of training images."""

Results = Mapping[str, Mapping[str, float]]


class BestModel:
    """Keeps the model whose score is the highest, and counts the evaluations without a gain.

    Args:
        metric: as ``best_metric`` gives it; "" keeps no model and never stops.
        patience: evaluations without a gain after which to stop; 0 for never.
        min_gain: what a score must rise by to be a gain, over the last one that was.
        checkpointer: of the model; writes ``model_best.pth``, which holds weights alone.
        average: whose weights are written where the metric is theirs ("ema/…").
    """

    def __init__(
        self,
        metric: str,
        patience: int = 0,
        min_gain: float = 0.0,
        *,
        checkpointer: CellCheckpointer,
        average: WeightAverage | None = None,
    ) -> None:
        self.metric = metric
        self.patience = patience
        self.min_gain = min_gain
        self.checkpointer = checkpointer
        self.average = average if metric.startswith(AVERAGED) else None
        self.score: float | None = None
        self.iteration = -1
        self.without_gain = 0
        self._last_gain = -math.inf

    @classmethod
    def from_config(
        cls, cfg: CfgNode, checkpointer: CellCheckpointer, average: WeightAverage | None
    ) -> BestModel:
        """Return what ``TEST.BEST_METRIC`` and ``TEST.EARLY_STOPPING`` ask for."""
        stopping, metric = cfg.TEST.EARLY_STOPPING, best_metric(cfg)
        if not metric and cfg.TEST.BEST_METRIC and cfg.TEST.TRAIN_IMAGES:
            logger.warning(
                "no best model is kept: DATASETS.TEST is empty; TEST.BEST_METRIC %s would choose "
                "by the training images",
                TRAINING + cfg.TEST.BEST_METRIC,
            )
        return cls(
            metric,
            stopping.PATIENCE,
            stopping.MIN_GAIN,
            checkpointer=checkpointer,
            average=average,
        )

    @property
    def out_of_patience(self) -> bool:
        """Whether training is to stop."""
        return 0 < self.patience <= self.without_gain

    def update(self, results: Results, iteration: int) -> None:
        """Take in the scores of an evaluation.

        A NaN, which a score without ground truth is, counts as no evaluation.

        Args:
            results: for each task its scores; empty where nothing was evaluated.
            iteration: that was evaluated.

        Raises:
            ConfigError: where the metric is none of them.
            OSError: where the model cannot be written.
        """
        if not self.metric or not results:
            return
        scores = flatten(results)
        if self.metric not in scores:
            raise unknown_metric(self.metric, list(scores))
        score = scores[self.metric]
        if not math.isfinite(score):
            logger.warning("%s is %s: it says nothing about the best model", self.metric, score)
            return
        if self.score is None or score > self.score:
            # Written first: what is remembered has to be there.
            self._save(iteration, score)
            self.score, self.iteration = score, iteration
            logger.info("%s %.3f is the best so far: %s.pth", self.metric, score, BEST_MODEL)
        if score > self._last_gain + self.min_gain:
            self._last_gain, self.without_gain = score, 0
            return
        self.without_gain += 1
        logger.info(
            "%s %.3f is no gain over %.3f, %d evaluation(s) in a row%s",
            self.metric,
            score,
            self._last_gain,
            self.without_gain,
            f" of {self.patience}" if self.patience else "",
        )

    def _save(self, iteration: int, score: float) -> None:
        model = self.checkpointer.model
        weights = model.state_dict() if self.average is None else self.average.weights()
        self.checkpointer.save_weights(
            BEST_MODEL, weights, iteration=iteration, metric=self.metric, score=score
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "metric": self.metric,
            "score": self.score,
            "iteration": self.iteration,
            "without_gain": self.without_gain,
            "last_gain": self._last_gain,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave; scores of another metric are not compared."""
        if state_dict["metric"] != self.metric:
            logger.warning(
                "the best model was chosen by %s, from now on it is by %s: the search starts anew",
                state_dict["metric"] or "nothing",
                self.metric or "nothing",
            )
            return
        self.score = state_dict["score"]
        self.iteration = state_dict["iteration"]
        self.without_gain = state_dict["without_gain"]
        self._last_gain = state_dict["last_gain"]


def flatten(results: Results) -> dict[str, float]:
    """Return {"<task>/<score>": value}."""
    return {f"{task}/{k}": float(v) for task, scores in results.items() for k, v in scores.items()}


def unknown_metric(metric: str, known: list[str]) -> ConfigError:
    """Return the error for a ``TEST.BEST_METRIC`` that is not among the scores."""
    return ConfigError(f"TEST.BEST_METRIC is {metric!r}; the scores are {', '.join(known)}")


def best_metric(cfg: CfgNode) -> str:
    """Return the full name of the score that ``TEST.BEST_METRIC`` means.

    It refuses, before anything is trained, a search for the best model that cannot work. Of several
    data sets, a score without a set is that of the first one.

    Args:
        cfg: reads ``TEST``, ``DATASETS`` and ``SOLVER.EMA``; in iterations.

    Returns:
        One of ``known_scores``; "" where none is asked for, or nothing is evaluated but training
        images (``TEST.TRAIN_IMAGES``) and the metric is not theirs.

    Raises:
        ConfigError: for a metric that will not be there, or early stopping without one.
    """
    stopping, metric = cfg.TEST.EARLY_STOPPING, cfg.TEST.BEST_METRIC
    for key in ("PATIENCE", "MIN_GAIN"):
        if stopping[key] < 0:
            raise ConfigError(f"TEST.EARLY_STOPPING.{key} is {stopping[key]}; at least 0")
    known = known_scores(cfg)
    if stopping.PATIENCE and not (metric and known and cfg.TEST.EVAL_PERIOD > 0):
        raise ConfigError(
            f"TEST.EARLY_STOPPING.PATIENCE is {stopping.PATIENCE}, which needs a TEST.BEST_METRIC "
            f"({metric!r}), DATASETS.TEST ({list(cfg.DATASETS.TEST)}) and more than one evaluation "
            f"(TEST.EVAL_EPOCHS or EVAL_PERIOD above 0)"
        )
    if not metric or not known:
        return ""
    if not cfg.DATASETS.TEST and not metric.startswith(TRAINING):
        if stopping.PATIENCE:
            raise unknown_metric(metric, known)
        return ""
    prefix = AVERAGED if metric.startswith(AVERAGED) else ""
    of_first = "/".join([prefix + "".join(cfg.DATASETS.TEST[:1]), metric.removeprefix(prefix)])
    for name in (metric, of_first):
        if name in known:
            return name
    raise unknown_metric(metric, known)


def known_scores(cfg: CfgNode) -> list[str]:
    """Return the names of the scores that evaluations of a config will give."""
    classes = cfg.DATASETS.CELL.CLASS_NAMES
    # Of no image and no cell the evaluations give the same names.
    tasks = {"bbox": coco_scores([], [], [], classes, "bbox", 1)}
    if cfg.MODEL.MASK_ON:
        tasks["segm"] = tasks["bbox"]
        if cfg.TEST.PANOPTIC.ENABLED:
            tasks["panoptic"] = panoptic_scores([], classes)
    names = cfg.DATASETS.TEST
    sets = [f"{name}/" for name in names] if len(names) > 1 else [""] * len(names)
    prefixes = sets + [AVERAGED + name for name in sets if cfg.SOLVER.EMA.ENABLED]
    prefixes += [TRAINING] if cfg.TEST.TRAIN_IMAGES > 0 else []
    return [prefix + name for prefix in prefixes for name in flatten(tasks)]
