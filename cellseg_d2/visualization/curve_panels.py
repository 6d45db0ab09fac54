"""Which metrics a training's curves show, and in which panel."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .metrics import Series

Metrics = Mapping[str, Series]


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Attributes:
        name: the metric's, as shown.
        series: its points.
        measured: whether each point was measured by itself, a few times a training: the points are
            marked.
    """

    name: str
    series: Series
    measured: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot: which metrics it shows, and how.

    Attributes:
        title: above it.
        unit: of its values; "percent" ends at 100.
        lines: picks them out of a run's metrics.
        color_by_run: colours tell the runs apart and line styles the metrics, or the other way
            round.
    """

    title: str
    unit: str
    lines: Callable[[Metrics], list[Line]]
    color_by_run: bool = False


# A score: of which images or weights ("" for the validation set), of which task, and its name.
_SCORE = re.compile(r"(?:(.+)/)?(segm|panoptic)/([^/]+)")
# Not the validation of the weights as they are.
_OTHER = {"ema": "averaged weights", "train": "training images"}


def _total(metrics: Metrics) -> list[Line]:
    lines = []
    if "total_loss" in metrics:
        lines.append(Line("training", metrics["total_loss"]))
    for key, series in metrics.items():
        if match := re.fullmatch(r"(?:(.+)/)?val/total_loss", key):
            name = f"validation, {match[1]}" if match[1] else "validation"
            lines.append(Line(name, series, measured=True))
    return lines


def _matching(pattern: str, measured: bool = False) -> Callable[[Metrics], list[Line]]:
    """The metrics whose whole name fits, called by the pattern's groups."""
    compiled = re.compile(pattern)

    def lines(metrics: Metrics) -> list[Line]:
        found = ((compiled.fullmatch(key), series) for key, series in metrics.items())
        named = ((match and " ".join(filter(None, match.groups())), s) for match, s in found)
        return [Line(name, series, measured) for name, series in named if name]

    return lines


def _validation(task: str, scores: str) -> Callable[[Metrics], list[Line]]:
    """The scores of validation sets; of one that is named, with its name."""
    pattern = re.compile(scores)

    def lines(metrics: Metrics) -> list[Line]:
        found = []
        for where, name, series in _scores(metrics, task):
            match = pattern.fullmatch(name)
            if match and where.split("/")[0] not in _OTHER:
                found.append(Line(f"{where} {match[1]}".strip(), series, measured=True))
        return found

    return lines


def _compared(names: Sequence[str]) -> Callable[[Metrics], list[Line]]:
    """Mask AP beside that of averaged weights or on training images, where there is either."""

    def lines(metrics: Metrics) -> list[Line]:
        found = [each for each in _scores(metrics, "segm") if each[1] in names]
        if all(where.split("/")[0] not in _OTHER for where, *_ in found):
            return []
        found.sort(key=lambda each: names.index(each[1]))
        return [
            Line(f"{name}, {_place(where)}", series, measured=True) for where, name, series in found
        ]

    return lines


def _scores(metrics: Metrics, task: str) -> list[tuple[str, str, Series]]:
    matches = ((_SCORE.fullmatch(key), series) for key, series in metrics.items())
    return [(m[1] or "", m[3], series) for m, series in matches if m and m[2] == task]


def _place(where: str) -> str:
    first, _, rest = where.partition("/")
    return f"{_OTHER.get(first, first or 'validation')} {rest}".strip()


PANELS = (
    Panel("Total loss", "loss", _total, color_by_run=True),
    Panel("Learning rate", "rate", _matching("(lr)"), color_by_run=True),
    Panel("Training loss by part", "loss", _matching(r"(loss_\w+)")),
    Panel("Validation loss by part", "loss", _matching(r"(?:(.+)/)?val/(loss_\w+)", measured=True)),
    Panel("Mask AP, validation", "percent", _validation("segm", "(AP|AP50|AP75)")),
    Panel("Mask AP by class, validation", "percent", _validation("segm", "AP-(.+)")),
    Panel("Mask AP by weights and images", "percent", _compared(("AP50", "AP"))),
    Panel(
        "Panoptic quality, validation",
        "percent",
        _validation("panoptic", "(PQ|SQ|DQ|AJI|Dice)"),
    ),
)
"""In the order they are drawn in, two a row."""
