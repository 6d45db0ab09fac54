"""Scores as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tabulate import tabulate

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl")
PANOPTIC_SUMMARY = ("PQ", "SQ", "DQ", "mPQ+", "AJI", "Dice", "F_d")
BY_CLASS = ("AP", "AP50")
PANOPTIC_BY_CLASS = ("PQ", "PQ+", "F_c")
_LINES = (*SUMMARY[:3], "PQ", "mPQ+", "AJI", "F_d")
_LONGEST_NAME = 40  # beside six columns of figures, for a hundred characters in all


def score_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out an evaluation's scores: all classes, each class, and the summary line by line.

    Args:
        results: for each task ("bbox", "segm", "panoptic", or "cells_val/segm" and so on of several
            data sets) its scores in percent, as ``CellTrainer.test`` gives them.

    Returns:
        Tables of at most 100 characters a line, then lines such as ``segm AP50: 87.3``; scores
        without ground truth are "n/a".
    """
    parts = []
    columns: tuple[str, ...]
    for columns in (SUMMARY, PANOPTIC_SUMMARY):
        tasks = [task for task, scores in results.items() if columns[0] in scores]
        if tasks:
            rows = [[_shortened(task), *_percents(results[task], columns)] for task in tasks]
            parts.append(_table(rows, ["all classes", *columns]))
    masks = [task for task in results if task.endswith("segm")] or list(results)[:1]
    for task in masks:
        scores = dict(results[task])
        by_class: tuple[str, ...] = BY_CLASS
        if (panoptic := f"{task.removesuffix('segm')}panoptic") in results:
            scores |= results[panoptic]
            by_class += PANOPTIC_BY_CLASS
        names = [key.removeprefix("AP-") for key in scores if key.startswith("AP-")]
        rows = [
            [_shortened(name), *_percents(scores, [f"{column}-{name}" for column in by_class])]
            for name in names
        ]
        parts.append(_table(rows, [_shortened(f"{task} by class"), *by_class]))
    lines = [
        f"{task} {key}: {_percent(scores[key])}"
        for task, scores in results.items()
        for key in _LINES
        if key in scores
    ]
    return "\n\n".join([*parts, "\n".join(lines)])


def _table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    align = ("left", *["right"] * (len(header) - 1)) if rows else None
    return tabulate(rows, header, disable_numparse=True, colalign=align)


def _percents(scores: Mapping[str, float], keys: Sequence[str]) -> list[str]:
    return [_percent(scores.get(key)) for key in keys]


def _percent(value: float | None) -> str:
    return "n/a" if value is None or value != value else f"{value:.1f}"


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
