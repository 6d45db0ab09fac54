"""A data set's panoptic scores, from the results of its images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .detection import RADIUS, classification_f1, detection_f1
from .image_result import ImageResult
from .panoptic import IOU_THRESHOLDS, MatchCounts

SPURIOUS, MISSED = "spurious", "missed"


def panoptic_scores(results: Sequence[ImageResult], class_names: Sequence[str]) -> dict[str, float]:
    """Average the images, and pool their counts, each as the work it comes from does.

    ========================  ===================================================================
    PQ, SQ, DQ, AJI, Dice     of each image whatever the classes, then the mean over images
                              (HoVer-Net's CoNSeP table); images without any cell, in the ground
                              truth or predicted, are left out
    PQ-<class>                of each image within the class, then the mean over the images whose
                              **ground truth** has the class (MoNuSAC 2020): elsewhere, what is
                              predicted of an absent class goes unpunished
    PQ+-<class>               within the class, counts of all images pooled (CoNIC 2022): spurious
                              cells count in every image
    mPQ+                      mean of PQ+-<class> over classes (CoNIC 2022)
    F_d, F_c-<class>          F1 of detection and classification by centroids, counts of all images
                              pooled (HoVer-Net; :mod:`.detection`)
    ========================  ===================================================================

    A class that the whole data set's ground truth lacks has NaN for its scores, and is left out of
    the mean over classes.

    Args:
        results: of the images.
        class_names: of the C classes.

    Returns:
        The scores in percent; NaN where there is nothing to measure.
    """
    scores = {
        "PQ": _mean(r.overall.pq for r in results),
        "SQ": _mean(r.overall.sq for r in results),
        "DQ": _mean(r.overall.dq for r in results),
        "mPQ+": float("nan"),
        "AJI": _mean(r.aji for r in results),
        "Dice": _mean(r.dice for r in results),
    }
    by_centroid = _sum([r.centroid_confusion for r in results], len(class_names))
    scores["F_d"] = detection_f1(by_centroid)
    f_c = classification_f1(by_centroid)
    pooled = []
    for category, name in enumerate(class_names):
        own = [r.by_class[category] for r in results]
        with_class = [counts for counts in own if counts.tp + counts.fn]
        total = sum(own, MatchCounts())
        pooled.append(total.pq if with_class else float("nan"))
        scores[f"PQ-{name}"] = _mean(counts.pq for counts in with_class)
        scores[f"PQ+-{name}"] = pooled[-1]
        scores[f"F_c-{name}"] = float(f_c[category]) if with_class else float("nan")
    scores["mPQ+"] = _mean(pooled)
    return {key: 100 * value for key, value in scores.items()}


def panoptic_details(results: Sequence[ImageResult], class_names: Sequence[str]) -> dict[str, Any]:
    """What lies behind the scores, for a report.

    Returns:
        JSON's types, shares in percent, NaN where nothing is measured:

        - ``confusion`` and ``centroid_confusion``: ``rows`` (true classes, then "spurious"),
          ``columns`` (predicted classes, then "missed") and ``counts``; pairs matched by an IoU
          above .5, and by centroids within ``radius`` pixels.
        - ``over_iou``: ``iou`` thresholds and, of all images pooled, ``F1``, ``precision`` and
          ``recall`` whatever the classes.
        - ``by_class``: by name ``images`` (whose ground truth has the class) and, of all images
          pooled, ``TP``, ``FP``, ``FN``, ``PQ``, ``SQ`` and ``DQ``.
        - ``images``: of each, in order, ``image_id``, ``PQ``, ``SQ``, ``DQ``, ``AJI``, ``Dice``,
          ``TP``, ``FP``, ``FN``, ``covered`` and ``dropped`` (see ``ImageResult``).
    """
    labels = {"rows": [*class_names, SPURIOUS], "columns": [*class_names, MISSED]}
    classes = {}
    for category, name in enumerate(class_names):
        own = [r.by_class[category] for r in results]
        classes[name] = {
            "images": sum(counts.tp + counts.fn > 0 for counts in own),
            **_counts(sum(own, MatchCounts())),
        }
    curve = [
        sum((r.over_iou[i] for r in results), MatchCounts()) for i in range(len(IOU_THRESHOLDS))
    ]
    return {
        "confusion": {
            **labels,
            "counts": _sum([r.confusion for r in results], len(class_names)).tolist(),
        },
        "centroid_confusion": {
            **labels,
            "counts": _sum([r.centroid_confusion for r in results], len(class_names)).tolist(),
            "radius": RADIUS,
        },
        "over_iou": {
            "iou": list(IOU_THRESHOLDS),
            "F1": [100 * counts.dq for counts in curve],
            "precision": [_share(counts.tp, counts.fp) for counts in curve],
            "recall": [_share(counts.tp, counts.fn) for counts in curve],
        },
        "by_class": classes,
        "images": [
            {
                "image_id": r.image_id,
                **_counts(r.overall),
                "AJI": 100 * r.aji,
                "Dice": 100 * r.dice,
                "covered": r.covered,
                "dropped": r.dropped,
            }
            for r in results
        ],
    }


def _counts(counts: MatchCounts) -> dict[str, float]:
    return {**counts.scores(), "TP": counts.tp, "FP": counts.fp, "FN": counts.fn}


def _share(part: int, rest: int) -> float:
    return 100 * part / (part + rest) if part + rest else float("nan")


def _sum(matrices: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    return sum(matrices, np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64))


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
