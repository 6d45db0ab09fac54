"""Tables hold the evaluation's own figures."""

from __future__ import annotations

from dataclasses import replace

from cellseg_d2.visualization.report.sources import RunSources
from cellseg_d2.visualization.report.tables import (
    confusion_tables,
    image_table,
    ranked_images,
    score_tables,
)

from .runs import CLASSES


def test_scores_of_all_and_by_class(run: RunSources) -> None:
    precision, panoptic, by_class = score_tables(run)
    assert precision.header[0] == "task" and [row[0] for row in precision.rows] == ["bbox", "segm"]
    segm = run.scores["segm"]
    for key, text in zip(precision.header[1:], precision.rows[1][1:], strict=True):
        assert text == ("n/a" if segm[key] is None else f"{segm[key]:.1f}")
    assert panoptic.rows[0][1] == f"{run.scores['panoptic']['PQ']:.1f}"
    assert "0.5" in panoptic.note
    assert [row[0] for row in by_class.rows] == CLASSES
    cells = [a["category_id"] for d in run.dicts.values() for a in d["annotations"]]
    counts = run.details["by_class"]
    for k, row in enumerate(by_class.rows):
        own = dict(zip(by_class.header, row, strict=True))
        assert own["cells"] == str(cells.count(k))
        assert own["FN"] == str(counts[CLASSES[k]]["FN"])
        expected = segm[f"AP50-{CLASSES[k]}"]
        assert own["AP50"] == ("n/a" if expected is None else f"{expected:.1f}")


def test_images_are_ranked_by_panoptic_quality(run: RunSources) -> None:
    rows = [
        {**run.details["images"][0], "image_id": i, "name": str(i), "PQ": quality}
        for i, quality in enumerate([50.0, None, 10.0])
    ]
    ranked = replace(run, details={**run.details, "images": rows})
    assert [row["image_id"] for row in ranked_images(ranked)] == [2, 0, 1]
    table = image_table(ranked)
    assert [row[:2] for row in table.rows] == [["2", "10.0"], ["0", "50.0"], ["1", "n/a"]]


def test_without_the_panoptic_task_images_are_ranked_by_precision(run: RunSources) -> None:
    kept = ("dataset", "classes", "max_detections", "precision_recall")
    rows = [{"image_id": i, "name": str(i), "AP50": ap} for i, ap in enumerate([30.0, 10.0])]
    details = {key: run.details[key] for key in kept} | {"images": rows}
    plain = replace(run, details=details, scores={"segm": run.scores["segm"]})
    assert [row["image_id"] for row in ranked_images(plain)] == [1, 0]
    assert image_table(plain).header == ["image", "AP50"]
    assert confusion_tables(plain) == []
    assert [table.header[-1] for table in score_tables(plain)] == ["APl", "AP50"]


def test_confusion_has_shares_of_the_row(run: RunSources) -> None:
    matrix = {
        "rows": ["a", "b", "spurious"],
        "columns": ["a", "b", "missed"],
        "counts": [[3, 1, 0], [0, 0, 0], [1, 1, 0]],
    }
    details = {**run.details, "confusion": matrix}
    table = confusion_tables(replace(run, details=details))[0]
    assert table.columns == ["a", "b", "missed"]
    assert table.rows == [
        ("a", [(3, 75.0), (1, 25.0), (0, 0.0)]),
        ("b", [(0, 0.0), (0, 0.0), (0, 0.0)]),
        ("spurious", [(1, 50.0), (1, 50.0), None]),
    ]


def test_both_confusions_are_there(run: RunSources) -> None:
    captions = [table.caption for table in confusion_tables(run)]
    assert len(captions) == 2 and "12 pixels" in captions[1]
