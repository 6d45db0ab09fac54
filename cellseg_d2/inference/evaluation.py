"""Scores of a predictor: with tiles, test-time augmentation and ensembles, as it predicts."""

from __future__ import annotations

import logging
from collections import OrderedDict

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from tqdm import tqdm

from ..engine import CellTrainer
from .predictor import CellPredictor

logger = logging.getLogger(__name__)

Results = OrderedDict[str, dict[str, float]]


def needs_predictor(cfg: CfgNode) -> bool:
    """Return whether a config asks for more than its model's answers to whole images."""
    return bool(cfg.TEST.TTA.ENABLED or cfg.TEST.TILE.SIZE)


def evaluate_predictor(cfg: CfgNode, predictor: CellPredictor, dataset_name: str) -> Results | None:
    """Find the cells of a data set's images and score them.

    Of several processes each takes a share of the images, and the main one scores.

    Args:
        cfg: says how to score; see ``CellTrainer.build_evaluator``.
        predictor: finds the cells.
        dataset_name: a registered data set whose dicts carry annotations.

    Returns:
        For each task its scores in percent, as ``CellEvaluator.evaluate`` gives them; None on ranks
        other than the main one.

    Raises:
        CellDataError: for an image that cannot be read.
    """
    dicts = DatasetCatalog.get(dataset_name)[comm.get_rank() :: comm.get_world_size()]
    evaluator = CellTrainer.build_evaluator(cfg, dataset_name)
    evaluator.reset()
    logger.info("Evaluating %s as the predictor sees it", dataset_name)
    answers = predictor.predict_all(item["file_name"] for item in dicts)
    with tqdm(total=len(dicts), unit="image", disable=None) as progress:
        for item, instances in zip(dicts, answers, strict=True):
            evaluator.process([item], [{"instances": instances}])
            progress.update()
    return evaluator.evaluate()


def evaluate_with_predictor(cfg: CfgNode, predictor: CellPredictor) -> Results:
    """Score a predictor on each data set of ``DATASETS.TEST``.

    Returns:
        For each task its scores, empty on ranks other than the main one; of several data sets, the
        tasks are called ``<set>/<task>``, as ``CellTrainer.test`` calls them.
    """
    names = cfg.DATASETS.TEST
    results: Results = OrderedDict()
    for name in names:
        for task, scores in (evaluate_predictor(cfg, predictor, name) or {}).items():
            results[task if len(names) == 1 else f"{name}/{task}"] = scores
    return results
