"""An evaluation's scores as a JSON file, for programs that go on from them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike

from ..checkpoint.files import replace_file

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
    """Write a JSON file that takes its name only once it is whole."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with replace_file(path) as file:
        file.write(text.encode())


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
