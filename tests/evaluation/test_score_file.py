"""The file of scores: plain JSON, whole or not there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cellseg_d2.evaluation import write_scores
from cellseg_d2.evaluation.score_file import write_json_whole


def test_scores_without_ground_truth_are_null(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_scores({"segm": {"AP50": 87.25, "APl": math.nan}, "bbox": {"AP50": 0.0}}, path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    scores = json.loads(path.read_text(), parse_constant=refuse)
    assert scores == {"segm": {"AP50": 87.25, "APl": None}, "bbox": {"AP50": 0.0}}


def test_a_file_that_cannot_be_written_leaves_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_scores({"segm": {"AP50": 1.0}}, path)
    before = path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        write_scores({"segm": {"AP50": math.inf}}, path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


def test_nan_is_null_however_deep(tmp_path: Path) -> None:
    path = tmp_path / "details.json"
    write_json_whole({"a": [1, math.nan, {"b": (math.nan, "text", None, True)}]}, path)
    assert json.loads(path.read_text()) == {"a": [1, None, {"b": [None, "text", None, True]}]}
