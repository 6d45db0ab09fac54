"""AP against pycocotools, on random dense images with masks as RLEs."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellseg_d2.evaluation import CellEvaluator, coco_scores
from cellseg_d2.structures import RLEMasks

NAMES = ["a", "b", "c"]


def disc(size: int, x: float, y: float, radius: float) -> dict:
    yy, xx = np.mgrid[:size, :size]
    mask = (xx - x) ** 2 + (yy - y) ** 2 <= radius**2
    return mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))


def random_case(seed: int, cells: int = 40, images: int = 3):
    """Ground-truth discs, predictions shifted and resized, some spurious, some missed."""
    rng = np.random.default_rng(seed)
    size = 256
    records = [{"id": i + 7, "height": size, "width": size} for i in range(images)]
    annotations, predictions = [], []
    for record in records:
        for _ in range(cells):
            x, y = rng.uniform(10, size - 10, 2)
            radius = rng.choice([6, 20, 60], p=[0.7, 0.2, 0.1])
            rle = disc(size, x, y, radius)
            category = int(rng.integers(2))  # class c has no ground truth
            common = {"image_id": record["id"], "category_id": category}
            annotations.append(
                common
                | {
                    "segmentation": rle,
                    "area": int(mask_utils.area(rle)),
                    "bbox": mask_utils.toBbox(rle).tolist(),
                }
            )
            if rng.uniform() < 0.8:
                shift = rng.normal(0, radius / 5, 2)
                guess = disc(size, x + shift[0], y + shift[1], radius * rng.uniform(0.8, 1.2))
                wrong = int(rng.integers(3)) if rng.uniform() < 0.2 else category
                predictions.append(
                    common
                    | {
                        "category_id": wrong,
                        "segmentation": guess,
                        "bbox": mask_utils.toBbox(guess).tolist(),
                        "score": float(np.round(rng.uniform(), 2)),  # ties happen
                    }
                )
    return records, annotations, predictions


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


@pytest.fixture
def dataset():
    """A registered data set of the random case, and its predictions as a model would answer."""
    records, annotations, predictions = random_case(seed=4)
    dicts = [
        {
            "file_name": f"{r['id']}.tif",
            "image_id": r["id"],
            "height": r["height"],
            "width": r["width"],
            "annotations": [
                {
                    "category_id": a["category_id"],
                    "segmentation": a["segmentation"],
                    "area": a["area"],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "bbox": BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS),
                }
                for a in annotations
                if a["image_id"] == r["id"]
            ],
        }
        for r in records
    ]
    DatasetCatalog.register("coco_test", lambda: dicts)
    MetadataCatalog.get("coco_test").thing_classes = NAMES
    yield records, annotations, predictions
    DatasetCatalog.remove("coco_test")
    MetadataCatalog.remove("coco_test")


def test_evaluator_gives_the_scores_of_its_predictions(dataset) -> None:
    records, annotations, predictions = dataset
    evaluator = CellEvaluator("coco_test", max_detections=500)
    evaluator.reset()
    for record in records:
        own = [p for p in predictions if p["image_id"] == record["id"]]
        boxes = np.array([p["bbox"] for p in own])
        size = (record["height"], record["width"])
        instances = Instances(
            size,
            pred_boxes=Boxes(
                torch.tensor(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
            ),
            scores=torch.tensor([p["score"] for p in own], dtype=torch.float64),
            pred_classes=torch.tensor([p["category_id"] for p in own]),
            pred_masks=RLEMasks([p["segmentation"] for p in own], size),
        )
        evaluator.process([{"image_id": record["id"]}], [{"instances": instances}])
    results = evaluator.evaluate()
    assert list(results) == ["bbox", "segm"]
    for task, scores in results.items():
        expected = coco_scores(records, annotations, predictions, NAMES, task, 500)
        assert scores == pytest.approx(expected, nan_ok=True)


def test_evaluator_of_an_image_without_predictions(dataset) -> None:
    records, *_ = dataset
    size = (records[0]["height"], records[0]["width"])
    empty = Instances(
        size,
        pred_boxes=Boxes(torch.zeros(0, 4)),
        scores=torch.zeros(0),
        pred_classes=torch.zeros(0, dtype=torch.int64),
        pred_masks=RLEMasks([], size),
    )
    evaluator = CellEvaluator("coco_test", max_detections=500)
    evaluator.process([{"image_id": records[0]["id"]}], [{"instances": empty}])
    assert evaluator.evaluate()["segm"]["AP"] == 0
