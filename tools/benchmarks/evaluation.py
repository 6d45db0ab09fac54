"""Scoring: COCO's average precision against pycocotools, label maps against a pass per cell."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellseg_d2.data.synthetic import make_label_map
from cellseg_d2.evaluation.coco import coco_precision
from cellseg_d2.evaluation.image_result import compare_image
from cellseg_d2.evaluation.overlaps import instance_overlaps
from cellseg_d2.evaluation.panoptic import match_counts
from cellseg_d2.structures import encode_label_map
from cellseg_d2.structures.flatten import flatten_masks

from .timing import Comparison, Figure, compare, median_seconds

SIZE = (1000, 1000)
CLASS_NAMES = ("class1", "class2", "class3", "class4")
CAP = 1000
"""Detections of an image that count."""

Case = tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]
"""Images, annotations and predictions as COCO has them."""


def run() -> Iterator[Comparison | Figure]:
    """Yield each comparison as it is made."""
    case = make_case(images=10, cells=600)
    for iou_type in ("bbox", "segm"):
        yield average_precision(case, iou_type)
    yield matching()
    yield flattening()
    images, annotations, predictions = make_case(images=1, cells=1000)
    record = {"image_id": 1, "height": SIZE[0], "width": SIZE[1], "annotations": annotations}
    _, seconds = median_seconds(lambda: compare_image(record, predictions, 4, 0.0), 15)
    yield Figure("all panoptic scores of an image of 1,000 cells", 1e3 * seconds, "ms")


def make_case(images: int, cells: int) -> Case:
    """Draw images; the predictions are their cells moved by 2 pixels, a tenth in another class."""
    records, annotations, predictions = [], [], []
    for image_id in range(1, images + 1):
        rng = np.random.default_rng(image_id)
        label_map = make_label_map(rng, SIZE, cells)
        records.append({"id": image_id, "height": SIZE[0], "width": SIZE[1]})
        truth, moved = (
            encode_label_map(m) for m in (label_map, np.roll(label_map, (2, 1), (0, 1)))
        )
        classes = rng.integers(4, size=len(truth))
        taken_for = np.where(rng.random(len(truth)) < 0.9, classes, (classes + 1) % 4)
        annotations += _entries(image_id, truth, classes, area=truth.areas.tolist())
        scores = rng.random(len(truth)).round(3)
        predictions += _entries(image_id, moved, taken_for, score=scores.tolist())
    return records, annotations, predictions


def average_precision(case: Case, iou_type: str) -> Comparison:
    """The whole evaluation; AP by class, size and IoU equal to 1e-9."""
    records, annotations, predictions = case

    def pycocotools() -> np.ndarray:
        gt = COCO()
        gt.dataset = {
            "images": records,
            "annotations": [a | {"id": i, "iscrowd": 0} for i, a in enumerate(annotations, 1)],
            "categories": [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES)],
        }
        drop = "bbox" if iou_type == "segm" else "segmentation"
        results = [{k: v for k, v in p.items() if k != drop} for p in predictions]
        with contextlib.redirect_stdout(io.StringIO()):
            gt.createIndex()
            evaluation = COCOeval(gt, gt.loadRes(results), iou_type)
            evaluation.params.maxDets = [CAP]
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation.eval["precision"][..., 0].mean(axis=1).round(9)

    def ours() -> np.ndarray:
        precision = coco_precision(records, annotations, predictions, CLASS_NAMES, iou_type, CAP)
        return precision.mean(axis=1).round(9)

    name = f"{iou_type} AP of {len(records)} images, {len(annotations)} cells"
    return compare(name, "pycocotools", pycocotools, ours, goal=3, repeats=(1, 3))


def matching() -> Comparison:
    """TP, FP, FN and the sum of IoUs of two label maps against a pass over the pixels per cell."""
    gt = make_label_map(np.random.default_rng(0), SIZE, 1000)
    pred = np.roll(make_label_map(np.random.default_rng(0), SIZE, 1000), (3, 2), (0, 1))

    def per_cell() -> tuple[int, int, int, float]:
        areas = np.bincount(pred.ravel())
        ious = []
        for i in np.unique(gt)[1:]:
            mask = gt == i
            guesses, shared = np.unique(pred[mask], return_counts=True)
            own = shared / (mask.sum() + areas[guesses] - shared)
            ious += own[(own > 0.5) & (guesses > 0)].tolist()
        found = len(np.unique(gt)) - 1, len(np.unique(pred)) - 1
        return len(ious), found[1] - len(ious), found[0] - len(ious), round(sum(ious), 9)

    def one_pass() -> tuple[int, int, int, float]:
        counts = match_counts(instance_overlaps(gt, pred))
        return counts.tp, counts.fp, counts.fn, round(counts.iou, 9)

    return compare(
        "PQ of 1,000 cells against 1,000", "one pass per cell", per_cell, one_pass, goal=20
    )


def flattening() -> Comparison:
    """1,000 overlapping RLEs to one label map against painting their bitmaps one by one."""
    rng = np.random.default_rng(0)
    rles = encode_label_map(make_label_map(rng, SIZE, 500)).rles()
    rles += encode_label_map(make_label_map(rng, SIZE, 500)).rles()
    scores = rng.random(len(rles))

    def one_by_one() -> tuple[np.ndarray, np.ndarray]:
        owner = np.full(SIZE, -1)
        for i in np.argsort(scores):
            owner[mask_utils.decode(rles[i]).astype(bool)] = i
        kept = np.unique(owner[owner >= 0])
        ids = np.zeros(len(rles) + 1, dtype=np.int32)
        ids[kept] = np.arange(1, len(kept) + 1)
        return ids[owner], kept

    def ours() -> tuple[np.ndarray, np.ndarray]:
        flat = flatten_masks(rles, scores, SIZE)
        return flat.label_map, flat.kept

    return compare("flatten 1,000 RLEs", "decode and paint each", one_by_one, ours, goal=10)


def _entries(
    image_id: int, cells: Any, classes: np.ndarray, **extra: list[float]
) -> list[dict[str, Any]]:
    boxes = cells.boxes.astype(float)
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {
            "image_id": image_id,
            "category_id": category,
            "segmentation": rle,
            "bbox": box,
            **{key: values[i] for key, values in extra.items()},
        }
        for i, (category, rle, box) in enumerate(
            zip(classes.tolist(), cells.rles(), boxes.tolist(), strict=True)
        )
    ]
