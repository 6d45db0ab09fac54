"""Reading of the `metrics.json` that Detectron2 writes during training."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CellDataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Series:
    """One metric over a training.

    Attributes:
        iterations: (P,) int64, ascending, each once.
        values: (P,) float64; NaN and infinities as they were written.
    """

    iterations: NDArray[np.int64]
    values: NDArray[np.float64]


def read_metrics(path: str | PathLike[str]) -> dict[str, Series]:
    """Reads a training's metrics.

    The file holds one JSON object a line, each with an `iteration`. A resumed training repeats
    iterations: for each metric, what is written later replaces what stands at the same and at
    later iterations. Lines cut off by a crash are left out with a warning.

    Args:
        path: the `metrics.json`.

    Returns:
        {metric: its values}, in the order of first appearance.

    Raises:
        CellDataError: the file cannot be read or holds no metric.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _fault(path, f"a file that cannot be read ({error})") from error
    points: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _parse(line)
        if record is None:
            logger.warning("%s: left out line %d, which is incomplete", path, number)
            continue
        iteration = record.pop("iteration")
        for name, value in record.items():
            if type(value) in (int, float):
                _put(points.setdefault(name, {}), iteration, float(value))
    if not points:
        raise _fault(path, "no metric")
    return {
        name: Series(np.array(list(values), np.int64), np.array(list(values.values()), np.float64))
        for name, values in points.items()
    }


def _parse(line: str) -> dict[str, Any] | None:
    """One line's object; None for a line that is not complete."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(record, dict) and type(record.get("iteration")) is int:
        return record
    return None


def _put(values: dict[int, float], iteration: int, value: float) -> None:
    """Appends a point; those from its iteration on are of a run that was given up."""
    while values and next(reversed(values)) >= iteration:
        values.popitem()
    values[iteration] = value


def _fault(path: str | PathLike[str], found: str) -> CellDataError:
    return CellDataError(
        path,
        found,
        "a metrics.json with one object a line, as training writes it",
        "name the output folder of a training",
    )
