"""Scores as text."""

from __future__ import annotations

from collections.abc import Mapping

from tabulate import tabulate

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def score_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out an evaluation's scores: all classes, each class, and the summary line by line.

    Args:
        results: for each task ("bbox", "segm", or "cells_val/segm" and so on of several data
            sets) its scores in percent, as ``CellTrainer.test`` gives them.

    Returns:
        Two tables, then lines such as ``segm AP50: 87.3``; scores without ground truth are "n/a".
    """
    summary = [[task, *(_percent(s.get(key)) for key in SUMMARY)] for task, s in results.items()]
    parts = [tabulate(summary, ["all classes", *SUMMARY], disable_numparse=True, stralign="right")]
    for task in [task for task in results if task.endswith("segm")] or list(results)[:1]:
        scores = results[task]
        classes = [key.removeprefix("AP-") for key in scores if key.startswith("AP-")]
        rows = [
            [name, _percent(scores[f"AP-{name}"]), _percent(scores[f"AP50-{name}"])]
            for name in classes
        ]
        header = [f"{task} by class", "AP", "AP50"]
        parts.append(tabulate(rows, header, disable_numparse=True, stralign="right"))
    lines = [
        f"{task} {key}: {_percent(scores.get(key))}"
        for task, scores in results.items()
        for key in SUMMARY[:3]
    ]
    return "\n\n".join([*parts, "\n".join(lines)])


def _percent(value: float | None) -> str:
    return "n/a" if value is None or value != value else f"{value:.1f}"
