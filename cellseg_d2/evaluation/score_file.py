"""An evaluation's scores as a JSON file, for programs that go on from them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike
from typing import Any

from ..checkpoint.files import replace_file

SCORE_FILE = "scores.json"


def write_scores(results: Mapping[str, Mapping[str, float]], path: str | PathLike[str]) -> None:
    """Write an evaluation's scores; NaN becomes null, which all JSON readers know.

    The file appears under its name only when complete.

    Args:
        results: for each task its scores in percent, as ``CellEvaluator`` gives them.
        path: the file; one that is there is replaced.
    """
    write_json_whole(
        {
            task: {key: float(value) for key, value in values.items()}
            for task, values in results.items()
        },
        path,
    )


def write_json_whole(value: object, path: str | PathLike[str]) -> None:
    """Write a JSON file that takes its name only once it is whole.

    Args:
        value: of JSON's types; NaN in it becomes null.
        path: the file; one that is there is replaced.

    Raises:
        ValueError: for an infinity, which JSON cannot say.
    """
    text = json.dumps(_null_for_nan(value), indent=2, allow_nan=False) + "\n"
    with replace_file(path) as file:
        file.write(text.encode())


def _null_for_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _null_for_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null_for_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
