"""Collects a model's answers over a data set, and scores them all at once."""

from __future__ import annotations

import itertools
import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..checkpoint.files import replace_file
from ..data.layout import image_name
from .coco import RECALL_POINTS, coco_precision, coco_scores, summarize_precision
from .image_result import ImageResult, compare_image
from .panoptic_scores import panoptic_details, panoptic_scores
from .records import coco_ground_truth, coco_predictions
from .score_file import write_json_whole
from .tables import score_table

logger = logging.getLogger(__name__)

DETAILS_FILE = "evaluation_details.json"
PREDICTIONS_FILE = "coco_instances_results.json"
PANOPTIC = "panoptic"


class CellEvaluator(DatasetEvaluator):
    """Average precision and panoptic quality of one pass over a data set.

    The ground truth is taken from the data-set dicts at each evaluation, never from a cached file
    that goes stale. The scores do not depend on how the images were shared out among ranks.

    Args:
        dataset_name: a registered data set whose dicts carry annotations.
        max_detections: see ``coco_scores``; ``TEST.DETECTIONS_PER_IMAGE`` in a run.
        tasks: "bbox" and "segm", or one of them.
        panoptic: whether to measure the panoptic task too (``panoptic_scores``); without "segm"
            there is nothing to measure it on.
        score_threshold: predictions of a lower score are not in the label maps that the panoptic
            task is measured on.
        output_dir: folder for ``coco_instances_results.json`` (the predictions, with categories
            from 1 as in a submission) and ``evaluation_details.json`` (``details``, NaN as null);
            nothing is written if None.
        distributed: whether to gather the answers of all ranks; the main one scores.

    Attributes:
        details: what lies behind the scores, of the last ``evaluate`` on the main rank:
            ``dataset``, ``classes`` (names), ``max_detections``, ``precision_recall`` and
            ``images``; with the panoptic task ``score_threshold`` and the entries of
            ``panoptic_details``. ``precision_recall`` has ``task``,
            ``iou`` (.5), ``recall`` (101 values, percent) and ``precision`` (by class: as many, or
            None without ground truth). ``images`` lists, by image id, ``image_id``, ``name``,
            ``file_name``, ``AP50`` of the image alone, and the panoptic entries.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        max_detections: int,
        tasks: Sequence[str] = ("bbox", "segm"),
        panoptic: bool = True,
        score_threshold: float = 0.5,
        output_dir: str | PathLike[str] | None = None,
        distributed: bool = True,
    ) -> None:
        self.dataset_name = dataset_name
        self.max_detections = max_detections
        self.tasks = tuple(tasks)
        self.panoptic = panoptic and "segm" in self.tasks
        self.score_threshold = score_threshold
        self.output_dir = Path(output_dir) if output_dir is not None else None
        self.distributed = distributed
        self.predictions: list[dict[str, Any]] = []
        self.details: dict[str, Any] = {}

    def reset(self) -> None:
        """Forget what was collected."""
        self.predictions = []
        self.details = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Collect the answers of one batch; masks are kept as RLEs."""
        for item, output in zip(inputs, outputs, strict=True):
            self.predictions += coco_predictions(output["instances"], item["image_id"])

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Score what was collected.

        Returns:
            For each task its scores in percent: "bbox" and "segm" (``coco_scores``) and "panoptic"
            (``panoptic_scores``); None on ranks other than the main one.
        """
        predictions = self.predictions
        if self.distributed:
            comm.synchronize()
            predictions = list(itertools.chain.from_iterable(comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return None
        # An image's predictions stay in the order in which the model gave them.
        predictions = sorted(predictions, key=lambda prediction: prediction["image_id"])
        names = list(MetadataCatalog.get(self.dataset_name).thing_classes)
        dicts = sorted(DatasetCatalog.get(self.dataset_name), key=lambda item: item["image_id"])

        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        images, annotations = coco_ground_truth(dicts)
        for task in self.tasks:
            precision = coco_precision(
                images, annotations, predictions, names, task, self.max_detections
            )
            results[task] = summarize_precision(precision, names)
        self.details = {
            "dataset": self.dataset_name,
            "classes": names,
            "max_detections": self.max_detections,
            "precision_recall": _precision_recall(self.tasks[-1], precision, names),
        }
        by_image = _group(predictions)
        rows = [self._describe(item, by_image.get(item["image_id"], []), names) for item in dicts]
        if self.panoptic:
            compared = [
                compare_image(
                    item, by_image.get(item["image_id"], []), len(names), self.score_threshold
                )
                for item in dicts
            ]
            _warn_of_covered(compared, self.dataset_name)
            results[PANOPTIC] = panoptic_scores(compared, names)
            details = panoptic_details(compared, names)
            rows = [row | measured for row, measured in zip(rows, details["images"], strict=True)]
            self.details |= {"score_threshold": self.score_threshold, **details}
        self.details["images"] = rows
        logger.info("%s:\n%s", self.dataset_name, score_table(results))
        # Detectron2's trainer goes on to log a part of the table once more.
        logging.getLogger("detectron2.evaluation.testing").addFilter(_is_no_repetition)
        if self.output_dir is not None:
            write_json_whole(self.details, self.output_dir / DETAILS_FILE)
            _write_predictions(predictions, self.output_dir / PREDICTIONS_FILE)
        return results

    def _describe(
        self, item: dict[str, Any], predictions: Sequence[dict[str, Any]], names: Sequence[str]
    ) -> dict[str, Any]:
        ground_truth = coco_ground_truth([item])
        scores = coco_scores(*ground_truth, predictions, names, self.tasks[-1], self.max_detections)
        return {
            "image_id": item["image_id"],
            "name": image_name(item["file_name"]),
            "file_name": item["file_name"],
            "AP50": scores["AP50"],
        }


def _is_no_repetition(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("copypaste:")


def _group(predictions: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = {}
    for prediction in predictions:
        groups.setdefault(prediction["image_id"], []).append(prediction)
    return groups


def _precision_recall(task: str, precision: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    curves = precision[0, :, :, 0]
    return {
        "task": task,
        "iou": 0.5,
        "recall": np.linspace(0, 100, RECALL_POINTS).round(6).tolist(),
        "precision": {
            name: None if curves[0, k] < 0 else (100 * curves[:, k]).tolist()
            for k, name in enumerate(names)
        },
    }


def _warn_of_covered(results: Sequence[ImageResult], dataset_name: str) -> None:
    covered = sum(result.covered for result in results)
    if covered:
        logger.warning(
            "%s: %d instances of the ground truth are wholly covered by others; the panoptic "
            "scores have them within their class only",
            dataset_name,
            covered,
        )


def _write_predictions(predictions: Sequence[dict[str, Any]], path: Path) -> None:
    """Write COCO's results, one a line."""
    with replace_file(path) as file:
        file.write(b"[")
        for index, prediction in enumerate(predictions):
            entry = dict(prediction, category_id=prediction["category_id"] + 1)
            if (rle := prediction.get("segmentation")) is not None:
                counts = rle["counts"]
                text = counts if isinstance(counts, str) else counts.decode("ascii")
                entry["segmentation"] = {"size": list(rle["size"]), "counts": text}
            file.write(b",\n" if index else b"\n")
            file.write(json.dumps(entry, allow_nan=False).encode("ascii"))
        file.write(b"\n]\n")
