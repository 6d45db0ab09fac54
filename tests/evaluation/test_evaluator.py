"""The evaluator gives the scores of what it collected, however that was shared out."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import print_csv_format, verify_results
from detectron2.structures import Boxes, BoxMode, Instances

from cellseg_d2.evaluation import CellEvaluator, coco_scores, evaluator
from cellseg_d2.evaluation.image_result import compare_image
from cellseg_d2.evaluation.panoptic_scores import panoptic_scores
from cellseg_d2.structures import RLEMasks

from .cases import NAMES, random_case

NAME = "evaluator_test"


@pytest.fixture
def dataset():
    """A registered data set of the random case, and its predictions as a model would answer."""
    records, annotations, predictions = random_case(seed=4)
    dicts = [
        {
            "file_name": f"somewhere/{r['id']}.tif",
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
    DatasetCatalog.register(NAME, lambda: dicts)
    MetadataCatalog.get(NAME).thing_classes = NAMES
    yield records, annotations, predictions
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def answer(record: dict, predictions: list[dict]) -> Instances:
    """One image's predictions as the model gives them."""
    own = [p for p in predictions if p["image_id"] == record["id"]]
    boxes = np.array([p["bbox"] for p in own], dtype=float).reshape(-1, 4)
    size = (record["height"], record["width"])
    return Instances(
        size,
        pred_boxes=Boxes(torch.tensor(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))),
        scores=torch.tensor([p["score"] for p in own], dtype=torch.float64),
        pred_classes=torch.tensor([p["category_id"] for p in own], dtype=torch.int64),
        pred_masks=RLEMasks([p["segmentation"] for p in own], size),
    )


def evaluated(records, predictions, **options) -> CellEvaluator:
    found = CellEvaluator(NAME, max_detections=500, **options)
    found.reset()
    for record in records:
        found.process([{"image_id": record["id"]}], [{"instances": answer(record, predictions)}])
    return found


def test_scores_of_its_predictions(dataset) -> None:
    records, annotations, predictions = dataset
    found = evaluated(records, predictions, score_threshold=0.3)
    results = found.evaluate()
    assert list(results) == ["bbox", "segm", "panoptic"]
    for task in ("bbox", "segm"):
        expected = coco_scores(records, annotations, predictions, NAMES, task, 500)
        assert results[task] == pytest.approx(expected, nan_ok=True)
    compared = [
        compare_image(d, [p for p in predictions if p["image_id"] == d["image_id"]], 3, 0.3)
        for d in DatasetCatalog.get(NAME)
    ]
    assert results["panoptic"] == pytest.approx(panoptic_scores(compared, NAMES), nan_ok=True)
    assert 5 < results["panoptic"]["PQ"] < 95  # the case is neither trivial nor hopeless


def test_the_scores_are_logged_once(dataset, caplog) -> None:
    records, _, predictions = dataset
    caplog.set_level(logging.INFO)
    results = evaluated(records, predictions).evaluate()
    caplog.clear()
    print_csv_format(results)  # as Detectron2's trainer does with what the evaluator answers
    verify_results(get_cfg(), results)
    assert not caplog.text
    logging.getLogger("detectron2.evaluation.testing").info("Results verification failed")
    assert "verification failed" in caplog.text, "what else is logged there stays"


@pytest.mark.parametrize("shares", [[[0, 2], [1]], [[2], [], [1, 0]]])
def test_any_number_of_ranks_gives_the_same(dataset, shares, monkeypatch, tmp_path: Path) -> None:
    records, _, predictions = dataset
    alone = evaluated(records, predictions, output_dir=tmp_path / "alone")
    expected = alone.evaluate()
    ranks = [evaluated([records[i] for i in share], predictions) for share in shares]
    monkeypatch.setattr(evaluator.comm, "gather", lambda *_, **__: [r.predictions for r in ranks])
    ranks[0].output_dir = tmp_path / "ranks"
    results = ranks[0].evaluate()
    for task, scores in expected.items():
        # Equal to the bit.
        assert {k: v for k, v in results[task].items() if not math.isnan(v)} == {
            k: v for k, v in scores.items() if not math.isnan(v)
        }
    for name in (evaluator.DETAILS_FILE, evaluator.PREDICTIONS_FILE):
        assert (tmp_path / "ranks" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    monkeypatch.setattr(evaluator.comm, "is_main_process", lambda: False)
    assert ranks[1].evaluate() is None


def test_details_and_files(dataset, tmp_path: Path) -> None:
    records, annotations, predictions = dataset
    found = evaluated(records, predictions, output_dir=tmp_path / "out")
    results = found.evaluate()
    details = json.loads((tmp_path / "out" / "evaluation_details.json").read_text())
    assert details["dataset"] == NAME and details["classes"] == NAMES
    assert [image["name"] for image in details["images"]] == ["7", "8", "9"]
    for record, image in zip(records, details["images"], strict=True):
        own = [
            [p for p in part if p["image_id"] == record["id"]]
            for part in (annotations, predictions)
        ]
        scores = coco_scores([record], *own, NAMES, "segm", 500)
        assert image["AP50"] == pytest.approx(scores["AP50"])
    mean = np.mean([image["PQ"] for image in details["images"]])
    assert results["panoptic"]["PQ"] == pytest.approx(mean)
    curves = details["precision_recall"]
    assert curves["precision"]["c"] is None and len(curves["recall"]) == 101
    assert np.mean(curves["precision"]["a"]) == pytest.approx(results["segm"]["AP50-a"])
    confusion = np.array(details["confusion"]["counts"])
    assert confusion[:-1].sum() == len(annotations) - sum(i["covered"] for i in details["images"])

    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert len(written) == len(predictions)
    again = [
        p | {"category_id": p["category_id"] - 1, "segmentation": p["segmentation"]}
        for p in written
    ]
    scores = coco_scores(records, annotations, again, NAMES, "segm", 500)
    assert scores == pytest.approx(results["segm"], nan_ok=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "coco_instances_results.json",
        "evaluation_details.json",
    ]


def test_tasks_can_be_left_out(dataset) -> None:
    records, _, predictions = dataset
    found = evaluated(records, predictions, panoptic=False)
    assert list(found.evaluate()) == ["bbox", "segm"]
    assert set(found.details["images"][0]) == {"image_id", "name", "file_name", "AP50"}
    assert list(evaluated(records, predictions, tasks=("bbox",)).evaluate()) == ["bbox"]


def test_images_without_predictions(dataset) -> None:
    records, *_ = dataset
    for seen in (records[:1], []):
        results = evaluated(seen, []).evaluate()
        assert results["segm"]["AP"] == 0
        assert results["panoptic"]["PQ"] == results["panoptic"]["mPQ+"] == 0
        assert math.isnan(results["panoptic"]["PQ-c"])
