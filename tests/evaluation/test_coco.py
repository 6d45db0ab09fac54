"""AP against pycocotools, on random dense images with masks as RLEs."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellseg_d2.evaluation import coco_scores

from .cases import NAMES, random_case


def pycocotools_precision(records, annotations, predictions, iou_type, cap):
    gt = COCO()
    gt.dataset = {
        "images": records,
        "annotations": [a | {"id": i, "iscrowd": 0} for i, a in enumerate(annotations, 1)],
        "categories": [{"id": i, "name": n} for i, n in enumerate(NAMES)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        gt.createIndex()
        drop = "bbox" if iou_type == "segm" else "segmentation"
        results = [{k: v for k, v in p.items() if k != drop} for p in predictions]
        evaluation = COCOeval(gt, gt.loadRes(results), iou_type)
        evaluation.params.maxDets = [cap]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0]


def mean_percent(values: np.ndarray) -> float:
    values = values[values > -1]
    return 100 * values.mean() if values.size else float("nan")


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("cap", [10, 100, 500])
def test_equals_pycocotools(iou_type: str, cap: int) -> None:
    case = random_case(seed=cap)
    scores = coco_scores(*case, NAMES, iou_type, cap)
    precision = pycocotools_precision(*case, iou_type, cap)
    expected = {
        "AP": precision[..., 0],
        "AP50": precision[0, ..., 0],
        "AP75": precision[5, ..., 0],
        "APs": precision[..., 1],
        "APm": precision[..., 2],
        "APl": precision[..., 3],
        **{f"AP-{n}": precision[:, :, k, 0] for k, n in enumerate(NAMES)},
        **{f"AP50-{n}": precision[0, :, k, 0] for k, n in enumerate(NAMES)},
    }
    assert set(scores) == set(expected)
    for key, values in expected.items():
        assert scores[key] == pytest.approx(mean_percent(values), abs=1e-9, nan_ok=True), key
    assert 5 < scores["AP50"] < 95  # the case is neither trivial nor hopeless
    assert math.isnan(scores["AP-c"])


def test_cap_counts() -> None:
    case = random_case(seed=1, cells=150, images=1)
    assert (
        coco_scores(*case, NAMES, "segm", 20)["AP50"]
        < coco_scores(*case, NAMES, "segm", 500)["AP50"]
    )


def test_perfect_missing_and_no_prediction() -> None:
    records, annotations, _ = random_case(seed=2)
    perfect = [a | {"score": 0.9} for a in annotations]
    assert coco_scores(records, annotations, perfect, NAMES, "segm", 500)["AP"] == pytest.approx(
        100
    )
    nothing = coco_scores(records, annotations, [], NAMES, "segm", 500)
    assert nothing["AP"] == 0 and nothing["AP-a"] == 0 and math.isnan(nothing["AP-c"])


def test_no_ground_truth_at_all_is_not_a_number() -> None:
    records, annotations, predictions = random_case(seed=3)
    assert math.isnan(coco_scores(records, [], predictions, NAMES, "segm", 100)["AP50"])
    assert math.isnan(coco_scores(records, [], [], NAMES, "segm", 100)["AP50"])
