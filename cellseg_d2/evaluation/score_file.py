"""An evaluation's scores as a JSON file, for programs that go on from them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

SCORE_FILE = "scores.json"


def write_scores(results: Mapping[str, Mapping[str, float]], path: str | PathLike[str]) -> None:
    """Write an evaluation's scores; NaN becomes null, which all JSON readers know.

    The file appears under its name only when complete.

    Args:
        results: for each task its scores in percent, as ``CellEvaluator`` gives them.
        path: the file; one that is there is replaced.
    """
    scores = {
        task: {key: _none_if_nan(value) for key, value in values.items()}
        for task, values in results.items()
    }
    write_json_whole(scores, path)


def write_json_whole(value: object, path: str | PathLike[str]) -> None:
    """Write a JSON file aside and rename it, so that what has its name is whole."""
    target = Path(path)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    aside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(target)


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
