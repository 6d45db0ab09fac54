"""Predictions are paired as COCO's evaluation pairs them; oracle: pycocotools."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellseg_d2.evaluation.image_result import shown_predictions
from cellseg_d2.visualization.report.matching import match_predictions, tally

SIZE = (90, 110)


def disc(x: float, y: float, radius: float) -> dict:
    yy, xx = np.mgrid[: SIZE[0], : SIZE[1]]
    mask = (xx - x) ** 2 + (yy - y) ** 2 <= radius**2
    return mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))


def random_image(seed: int) -> tuple[list[dict], list[dict]]:
    """Crowded discs of two classes, each found up to three times, with ties of scores."""
    rng = np.random.default_rng(seed)
    annotations, predictions = [], []
    for _ in range(30):
        x, y, radius = rng.uniform(5, 85), rng.uniform(5, 85), rng.uniform(3, 9)
        category = int(rng.integers(2))
        cell = {"category_id": category, "segmentation": disc(x, y, radius)}
        annotations += [cell] * (2 if rng.uniform() < 0.2 else 1)  # equal IoUs happen
        for _ in range(rng.integers(4)):
            dx, dy = rng.normal(0, 1.5, 2)
            guess = disc(x + dx, y + dy, radius * rng.uniform(0.8, 1.2))
            score = round(float(rng.uniform()), 1)
            predictions.append({"category_id": category, "segmentation": guess, "score": score})
    return annotations, predictions


def coco_matches(annotations: list[dict], predictions: list[dict]) -> np.ndarray:
    coco = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        coco.dataset = {
            "images": [{"id": 1, "height": SIZE[0], "width": SIZE[1]}],
            "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
            "annotations": [
                {
                    "id": i,
                    "image_id": 1,
                    "iscrowd": 0,
                    "area": float(mask_utils.area(a["segmentation"])),
                    **a,
                }
                for i, a in enumerate(annotations, 1)
            ],
        }
        coco.createIndex()
        found = coco.loadRes([{"image_id": 1, **dict(p)} for p in predictions])
        evaluation = COCOeval(coco, found, "segm")
        evaluation.params.maxDets = [1000]
        evaluation.evaluate()
    matches = np.full(len(predictions), -1)
    for result in evaluation.evalImgs:
        if result is not None and result["aRng"] == evaluation.params.areaRng[0]:
            for prediction, instance in zip(result["dtIds"], result["dtMatches"][0], strict=True):
                matches[prediction - 1] = int(instance) - 1
    return matches


@pytest.mark.parametrize("seed", range(6))
def test_pairs_are_cocos(seed: int) -> None:
    annotations, predictions = random_image(seed)
    matches = match_predictions(annotations, predictions, SIZE)
    np.testing.assert_array_equal(matches, coco_matches(annotations, predictions))
    assert 5 < (matches >= 0).sum() < len(predictions)


def test_pairs_hold_at_every_score_threshold() -> None:
    annotations, predictions = random_image(9)
    matches = match_predictions(annotations, predictions, SIZE)
    for threshold in (0.2, 0.5, 0.9):
        kept = [i for i, p in enumerate(predictions) if p["score"] >= threshold]
        again = match_predictions(annotations, [predictions[i] for i in kept], SIZE)
        np.testing.assert_array_equal(again, matches[kept])


def test_those_are_shown_that_label_maps_hold_at_every_score_threshold() -> None:
    _, predictions = random_image(2)
    # Each cell once more as another class, less sure by a hair.
    doubles = [
        p | {"category_id": (p["category_id"] + 1) % 3, "score": p["score"] - 1e-6}
        for p in predictions
    ]
    shown = shown_predictions([*predictions, *doubles], SIZE)
    assert shown and all(p in predictions for p in shown)
    for threshold in (0.0, 0.3, 0.6, 0.9):
        sure = [p for p in [*predictions, *doubles] if p["score"] >= threshold]
        scores = [p["score"] for p in sure]
        taken = np.zeros(SIZE, bool)
        expected = []
        for index in sorted(range(len(sure)), key=lambda i: -scores[i]):
            mask = mask_utils.decode(sure[index]["segmentation"]).astype(bool)
            if mask.any() and (mask & ~taken).sum() >= 0.5 * mask.sum():
                taken |= mask
                expected.append(index)
        assert [p for p in shown if p["score"] >= threshold] == [sure[i] for i in sorted(expected)]


def test_tallies_count_from_each_step_of_the_slider_on() -> None:
    annotations, predictions = random_image(3)
    predictions[0]["score"], predictions[1]["score"] = 1.0, 0.29  # 100 * .29 is below 29
    matches = match_predictions(annotations, predictions, SIZE)
    counted = tally(annotations, predictions, matches, num_classes=3)
    assert counted.gt.tolist() == [
        sum(a["category_id"] == k for a in annotations) for k in range(3)
    ]
    for step in range(101):
        for category in range(3):
            own = [
                match >= 0
                for match, p in zip(matches, predictions, strict=True)
                if p["category_id"] == category and p["score"] >= step / 100
            ]
            assert counted.tp[category, step:].sum() == sum(own)
            assert counted.fp[category, step:].sum() == len(own) - sum(own)
    assert ((counted + counted).tp == 2 * counted.tp).all()


@pytest.mark.parametrize("kind", ["nothing", "no cells", "no predictions"])
def test_empty_images(kind: str) -> None:
    annotations, predictions = random_image(1)
    annotations = annotations if kind == "no predictions" else []
    predictions = predictions if kind == "no cells" else []
    matches = match_predictions(annotations, predictions, SIZE)
    assert matches.tolist() == [-1] * len(predictions)
    counted = tally(annotations, predictions, matches, 2)
    assert (counted.fp.sum(), counted.gt.sum()) == (len(predictions), len(annotations))
