"""Means and pools worked out by hand, with classes that images lack."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cellseg_d2.evaluation.image_result import ImageResult
from cellseg_d2.evaluation.panoptic import MatchCounts
from cellseg_d2.evaluation.panoptic_scores import panoptic_details, panoptic_scores

NAMES = ["a", "b", "c"]
NOTHING = MatchCounts()


def result(image_id, overall, by_class, aji, dice, confusion=None) -> ImageResult:
    confusion = np.zeros((4, 4), dtype=np.int64) if confusion is None else np.array(confusion)
    over_iou = (overall, *[MatchCounts(0, 1, 1)] * 9)
    return ImageResult(
        image_id, overall, by_class, over_iou, aji, dice, confusion, confusion, 0, image_id
    )


RESULTS = [
    # Class a alone, found well; a spurious cell of class b, which the image lacks.
    result(
        1,
        MatchCounts(3, 1, 0, 2.4),
        (MatchCounts(3, 0, 0, 2.4), MatchCounts(0, 1, 0), NOTHING),
        0.6,
        0.8,
        [[3, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]],
    ),
    # Both: one of each found, one a taken for b.
    result(
        2,
        MatchCounts(3, 0, 0, 1.8),
        (MatchCounts(1, 0, 1, 0.6), MatchCounts(1, 1, 0, 0.6), NOTHING),
        0.4,
        0.6,
        [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    ),
    # No cell, none predicted: in no mean.
    result(3, NOTHING, (NOTHING, NOTHING, NOTHING), math.nan, math.nan),
    # No cell, and a spurious one of class c, which no image has.
    result(
        4,
        MatchCounts(0, 1, 0),
        (NOTHING, NOTHING, MatchCounts(0, 1, 0)),
        0.0,
        0.0,
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]],
    ),
]


def test_scores_worked_out_by_hand() -> None:
    found = panoptic_scores(RESULTS, NAMES)
    expected = {
        "PQ": (2.4 / 3.5 + 1.8 / 3 + 0) / 3,
        "SQ": (0.8 + 0.6 + 0) / 3,
        "DQ": (3 / 3.5 + 1 + 0) / 3,
        "AJI": (0.6 + 0.4 + 0) / 3,
        "Dice": (0.8 + 0.6 + 0) / 3,
        # MoNuSAC: a in images 1 and 2, b in image 2 alone, whatever was predicted elsewhere.
        "PQ-a": (0.8 + 0.6 / 1.5) / 2,
        "PQ-b": 0.6 / 1.5,
        "PQ-c": math.nan,
        # CoNIC: pooled, so that the spurious b of image 1 counts.
        "PQ+-a": 3.0 / 4.5,
        "PQ+-b": 0.6 / 2,
        "PQ+-c": math.nan,
        "mPQ+": (3.0 / 4.5 + 0.6 / 2) / 2,
        "F_d": 12 / (12 + 2),
        "F_c-a": 8 / (8 + 2),
        "F_c-b": 2 / (2 + 2 + 1),
        "F_c-c": math.nan,
    }
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key] == pytest.approx(100 * value, nan_ok=True), key


def test_no_images_and_no_cells() -> None:
    for results in ([], RESULTS[2:3]):
        assert all(math.isnan(value) for value in panoptic_scores(results, NAMES).values())
        assert np.sum(panoptic_details(results, NAMES)["confusion"]["counts"]) == 0


def test_details() -> None:
    found = panoptic_details(RESULTS, NAMES)
    assert found["confusion"]["rows"] == ["a", "b", "c", "spurious"]
    assert found["confusion"]["columns"] == ["a", "b", "c", "missed"]
    assert found["confusion"]["counts"] == [[4, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert found["centroid_confusion"]["radius"] == 12
    assert [found["by_class"][name]["images"] for name in NAMES] == [2, 1, 0]
    assert found["by_class"]["b"]["FP"] == 2
    assert found["over_iou"]["iou"][::9] == [0.5, 0.95]
    assert found["over_iou"]["F1"][0] == pytest.approx(100 * 12 / 14)
    assert found["over_iou"]["precision"][0] == pytest.approx(75)
    assert found["over_iou"]["recall"][:2] == [100, 0]
    assert [image["image_id"] for image in found["images"]] == [1, 2, 3, 4]
    assert found["images"][0]["PQ"] == pytest.approx(240 / 3.5)
    assert found["images"][3]["dropped"] == 4
