"""A run's scores as the rows of tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...evaluation.tables import PANOPTIC_SUMMARY, SUMMARY
from .sources import RunSources

NOTHING = "n/a"
"""What stands where there is nothing to measure."""

_IMAGE_SCORES = ("PQ", "SQ", "DQ", "AJI", "Dice", "AP50")
_IMAGE_COUNTS = ("TP", "FP", "FN")


@dataclass(frozen=True)
class Table:
    """A table of figures.

    Attributes:
        caption: above it.
        header: of all columns; the first one holds the rows' names.
        rows: texts, as many as the header's.
        note: below it.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Confusion:
    """Which classes are taken for which.

    Attributes:
        caption: above it.
        columns: predicted classes, and "missed".
        rows: true classes, and "spurious", each with its counts and their shares of the row in
            percent; None where there can be none.
    """

    caption: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[int, float] | None]]]


def score_tables(run: RunSources) -> list[Table]:
    """Return average precision and panoptic quality: of everything, by class, and by image."""
    tables = []
    for caption, columns, note in (
        (
            "Average precision, percent",
            SUMMARY,
            "APs, APm and APl: cells below 32², from 32² to 96², and above 96² pixels.",
        ),
        ("Panoptic quality, percent", PANOPTIC_SUMMARY, _panoptic_note(run)),
    ):
        tasks = [task for task, scores in run.scores.items() if columns[0] in scores]
        if tasks:
            rows = [[task, *_percents(run.scores[task], columns)] for task in tasks]
            tables.append(Table(caption, ["task", *columns], rows, note))
    tables.append(_class_table(run))
    return tables


def image_table(run: RunSources) -> Table:
    """Return the scores of each image, the worst first."""
    images = ranked_images(run)
    columns = [key for key in (*_IMAGE_SCORES, *_IMAGE_COUNTS) if key in run.details["images"][0]]
    rows = [
        [
            row["name"],
            *(_percent(row[key]) if key in _IMAGE_SCORES else f"{row[key]:,}" for key in columns),
        ]
        for row in images
    ]
    return Table("Every image, the worst first", ["image", *columns], rows)


def ranked_images(run: RunSources) -> list[dict[str, Any]]:
    """Return the images' details, those without a score last and the worst first.

    They are ranked by PQ, or by AP50 where PQ was not measured.
    """
    key = ranking_score(run)
    return sorted(
        run.details["images"],
        key=lambda row: (row[key] is None, row[key] or 0.0, row["image_id"]),
    )


def ranking_score(run: RunSources) -> str:
    """Return the name of the score that images are ranked by."""
    return "PQ" if "score_threshold" in run.details else "AP50"


def confusion_tables(run: RunSources) -> list[Confusion]:
    """Return the confusion matrices by IoU and by centroid; none without the panoptic task."""
    captions = {
        "confusion": "Pairs matched by an IoU above .5",
        "centroid_confusion": "Pairs matched by centroid",
    }
    found = []
    for key, caption in captions.items():
        if key not in run.details:
            continue
        matrix = run.details[key]
        if "radius" in matrix:
            caption += f", at most {matrix['radius']:g} pixels apart"
        last = len(matrix["rows"]) - 1
        rows: list[tuple[str, list[tuple[int, float] | None]]] = []
        for i, (name, counts) in enumerate(zip(matrix["rows"], matrix["counts"], strict=True)):
            total = max(1, sum(counts))
            cells = [(count, 100 * count / total) for count in counts]
            rows.append((name, [None if i == j == last else c for j, c in enumerate(cells)]))
        found.append(Confusion(caption, list(matrix["columns"]), rows))
    return found


def _class_table(run: RunSources) -> Table:
    masks, panoptic = run.task_scores("segm"), run.task_scores("panoptic")
    by_class = run.details.get("by_class", {})
    columns = ["AP", "AP50"]
    columns += ["PQ", "PQ+", "F_c", "TP", "FP", "FN"] if by_class else []
    truth = [0] * len(run.class_names)
    for item in run.dicts.values():
        for annotation in item["annotations"]:
            truth[annotation["category_id"]] += 1
    rows = []
    for name, cells in zip(run.class_names, truth, strict=True):
        row = [name, f"{cells:,}"]
        row += _percents({**masks, **panoptic}, [f"{column}-{name}" for column in columns[:5]])
        row += [f"{by_class[name][key]:,}" for key in columns[5:]]
        rows.append(row)
    note = (
        "PQ is the mean over images that hold the class, PQ+ pools all images; F_c is by centroid."
        if by_class
        else ""
    )
    return Table("By class, masks", ["class", "cells", *columns], rows, note)


def _panoptic_note(run: RunSources) -> str:
    threshold = run.details.get("score_threshold")
    return "" if threshold is None else f"Of cells with a score of at least {threshold:g}."


def _percents(scores: Mapping[str, float | None], keys: Sequence[str]) -> list[str]:
    return [_percent(scores.get(key)) for key in keys]


def _percent(value: float | None) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.1f}"
