"""The printed tables are readable at 100 columns, and end in lines that scripts can read."""

from __future__ import annotations

from cellseg_d2.evaluation import score_table
from cellseg_d2.evaluation.panoptic_scores import panoptic_scores


def test_lines_and_missing_scores() -> None:
    scores = {"AP": 41.234, "AP50": 87.3, "AP75": 0.0, "APs": float("nan")}
    text = score_table({"segm": scores | {"AP-a": 12.0, "AP50-a": float("nan")}})
    assert text.endswith("segm AP: 41.2\nsegm AP50: 87.3\nsegm AP75: 0.0")
    assert "n/a" in text and "nan" not in text


def all_scores(names: list[str]) -> dict[str, dict[str, float]]:
    average = {key: 100.0 for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    average |= {f"{key}-{name}": 100.0 for name in names for key in ("AP", "AP50")}
    panoptic = {key: 100.0 for key in ("PQ", "SQ", "DQ", "mPQ+", "AJI", "Dice", "F_d")}
    panoptic |= {f"{key}-{name}": 12.34 for name in names for key in ("PQ", "PQ+", "F_c")}
    return {"bbox": average, "segm": average, "panoptic": panoptic}


def test_panoptic_scores_and_long_names_fit() -> None:
    names = [
        "epithelial",
        "a class whose name somebody wrote out in full, and in detail",
        "AP-like",
    ]
    results = all_scores(names)
    assert set(results["panoptic"]) == set(panoptic_scores([], names))
    for prefix in ("", "cells_val/"):
        text = score_table({f"{prefix}{task}": scores for task, scores in results.items()})
        assert max(map(len, text.splitlines())) <= 100
        assert f"{prefix}panoptic PQ: 100.0" in text.splitlines()
        assert f"{prefix}panoptic F_d: 100.0" in text.splitlines()
        row = next(line for line in text.splitlines() if line.lstrip().startswith("epithelial"))
        assert row.split()[1:] == ["100.0", "100.0", "12.3", "12.3", "12.3"]
        assert "somebody wrote out i…" in text and "AP-like" in text


def test_boxes_alone() -> None:
    text = score_table({"bbox": all_scores(["a"])["bbox"]})
    assert "bbox by class" in text and "PQ" not in text
