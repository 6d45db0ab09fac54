"""COCO average precision for dense images, computed by faster-coco-eval.

Two things differ from Detectron2's evaluator. The cap on detections is an argument with one meaning
(upstream's 100 hides most cells, and any other value swaps in a slow evaluator whose summary prints
-1). The ground truth is taken from the data-set dicts at each evaluation, never from a cached file
that goes stale.
"""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from faster_coco_eval import COCO, COCOeval_faster

logger = logging.getLogger(__name__)

AREA_RANGES = ("all", "small", "medium", "large")
"""COCO's: all, below 32², 32² to 96², above 96² pixels."""


def coco_scores(
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    predictions: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    iou_type: str,
    max_detections: int,
) -> dict[str, float]:
    """Average precision in percent, as pycocotools defines it.

    Args:
        images: dicts with ``id``, ``height`` and ``width``.
        annotations: dicts with ``image_id``, ``category_id`` (from 0), ``bbox`` (x, y, w, h),
            ``area`` in pixels and, for masks, ``segmentation`` (RLE).
        predictions: dicts with ``image_id``, ``category_id`` (from 0), ``score``, and ``bbox`` or
            ``segmentation``.
        class_names: name of each category.
        iou_type: "bbox" or "segm".
        max_detections: of each image and class, the best by score, are counted.

    Returns:
        ``AP`` (mean over IoU .50 to .95), ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, and
        ``AP-<class>`` and ``AP50-<class>`` per class. NaN where no ground truth falls into it.
    """
    ground_truth = {
        "images": [dict(image) for image in images],
        # COCO's matching takes annotation id 0 for "unmatched".
        "annotations": [
            {"id": i, "iscrowd": 0, **annotation} for i, annotation in enumerate(annotations, 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(class_names)],
    }
    # loadRes would take the area of a mask's prediction from its box where both are there.
    unused = "bbox" if iou_type == "segm" else "segmentation"
    results = [{k: v for k, v in p.items() if k != unused} for p in predictions]
    gt = COCO(ground_truth)
    if results:
        evaluation = COCOeval_faster(gt, gt.loadRes(results), iou_type, print_function=_say_nothing)
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        # (IoU thresholds, recall points, classes, area ranges, detection caps); -1 where no GT.
        precision = np.asarray(evaluation.eval["precision"])[..., -1]
        thresholds = evaluation.params.iouThrs
    else:
        thresholds = np.linspace(0.5, 0.95, 10)
        precision = _precision_of_nothing(annotations, len(class_names))
    return _summarize(precision, thresholds, class_names)


def _say_nothing(*words: object) -> None:
    # The library reports each of its steps; the scores are logged once, at the end.
    pass


def _precision_of_nothing(annotations: Sequence[dict[str, Any]], classes: int) -> np.ndarray:
    # loadRes refuses an empty list. Without predictions precision is 0 wherever there is ground
    # truth, by class and area range.
    precision = np.full((10, 101, classes, len(AREA_RANGES)), -1.0)
    limits = [(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)]
    for annotation, (i, (low, high)) in itertools.product(annotations, enumerate(limits)):
        if low <= annotation["area"] <= high:
            precision[:, :, annotation["category_id"], i] = 0.0
    return precision


def _summarize(
    precision: np.ndarray, thresholds: np.ndarray, class_names: Sequence[str]
) -> dict[str, float]:
    def mean(values: np.ndarray) -> float:
        values = values[values > -1]
        return 100 * float(values.mean()) if values.size else float("nan")

    at = {50: np.isclose(thresholds, 0.5), 75: np.isclose(thresholds, 0.75)}
    scores = {
        "AP": mean(precision[..., 0]),
        "AP50": mean(precision[at[50], ..., 0]),
        "AP75": mean(precision[at[75], ..., 0]),
    }
    for i, suffix in enumerate("sml", start=1):
        scores[f"AP{suffix}"] = mean(precision[..., i])
    for k, name in enumerate(class_names):
        scores[f"AP-{name}"] = mean(precision[:, :, k, 0])
        scores[f"AP50-{name}"] = mean(precision[at[50], :, k, 0])
    return scores


class CellEvaluator(DatasetEvaluator):
    """Collects a model's answers over a data set and scores boxes and masks.

    Args:
        dataset_name: a registered data set whose dicts carry annotations.
        max_detections: see ``coco_scores``; ``TEST.DETECTIONS_PER_IMAGE`` in a run.
        tasks: "bbox" and "segm", or one of them.
        distributed: whether to gather the answers of all ranks; the main one scores.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        max_detections: int,
        tasks: Sequence[str] = ("bbox", "segm"),
        distributed: bool = True,
    ) -> None:
        self.dataset_name = dataset_name
        self.max_detections = max_detections
        self.tasks = tuple(tasks)
        self.distributed = distributed
        self.predictions: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget what was collected."""
        self.predictions = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Collect the answers of one batch; masks are kept as RLEs."""
        for item, output in zip(inputs, outputs, strict=True):
            self.predictions += _coco_predictions(output["instances"], item["image_id"])

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Score what was collected.

        Returns:
            For each task its scores (``coco_scores``); None on ranks other than the main one.
        """
        predictions = self.predictions
        if self.distributed:
            comm.synchronize()
            predictions = list(itertools.chain.from_iterable(comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return None
        names = MetadataCatalog.get(self.dataset_name).thing_classes
        images, annotations = _coco_ground_truth(DatasetCatalog.get(self.dataset_name))
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        for task in self.tasks:
            results[task] = coco_scores(
                images, annotations, predictions, names, task, self.max_detections
            )
            logger.info("%s:\n%s", task, create_small_table(results[task]))
        return results


def _coco_predictions(instances: Instances, image_id: int) -> list[dict[str, Any]]:
    boxes = instances.pred_boxes.tensor.cpu().numpy()
    boxes = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    scores = instances.scores.tolist()
    classes = instances.pred_classes.tolist()
    predictions = [
        {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
        for category, box, score in zip(classes, boxes, scores, strict=True)
    ]
    if instances.has("pred_masks"):
        for prediction, rle in zip(predictions, instances.pred_masks.rles, strict=True):
            prediction["segmentation"] = rle
    return predictions


def _coco_ground_truth(
    dicts: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    images = [{"id": d["image_id"], "height": d["height"], "width": d["width"]} for d in dicts]
    annotations = [
        {
            "image_id": d["image_id"],
            "category_id": a["category_id"],
            "bbox": BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS),
            "area": a["area"],
            "segmentation": a["segmentation"],
        }
        for d in dicts
        for a in d["annotations"]
    ]
    return images, annotations
