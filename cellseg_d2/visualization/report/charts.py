"""Line charts as numbers that a template draws as SVG: no picture, so that colours can change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 400, 240
"""Of a chart's coordinates; 12 of them are a line of text."""

LEFT, RIGHT, TOP, BOTTOM = 50, 18, 24, 36
"""Margins around the plot itself."""

_MOST_POINTS = 400
_MOST_MARKED = 60


@dataclass(frozen=True)
class ChartLine:
    """One line to draw.

    Attributes:
        name: in the legend.
        x: (P,) ascending, finite.
        y: (P,) float; the line is broken where a value is not finite.
        marked: whether each point is a measurement of its own, and marked.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    marked: bool = False


@dataclass(frozen=True)
class DrawnLine:
    """One line in a chart's coordinates.

    Attributes:
        name: in the legend.
        path: data of an SVG path.
        markers: x and y of the points to mark.
        summary: first, last, lowest and highest value in words, for those who do not see the line.
    """

    name: str
    path: str
    markers: list[tuple[float, float]]
    summary: str


@dataclass(frozen=True)
class Chart:
    """A chart, ready to draw.

    Attributes:
        title: above it.
        x_label: below it.
        y_label: what its values are.
        lines: in the legend's order.
        x_ticks: position and text.
        y_ticks: position and text.
    """

    title: str
    x_label: str
    y_label: str
    lines: list[DrawnLine]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]

    @property
    def description(self) -> str:
        """The chart in words."""
        lines = "; ".join(f"{line.name}: {line.summary}" for line in self.lines)
        return f"{self.title}, {self.y_label} by {self.x_label}. {lines}."


def draw_chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[ChartLine],
    *,
    x_range: tuple[float, float] | None = None,
    most: float | None = None,
) -> Chart | None:
    """Lay out a line chart; values begin at 0, or at the lowest one below.

    Args:
        title: above it.
        x_label: below it.
        y_label: what its values are.
        lines: to draw; those without a finite value are left out.
        x_range: ends of the x axis; None for the data's.
        most: values end here, even where there is room to a rounder number; None for no end.

    Returns:
        The chart; None where no line has a finite value.
    """
    arrays = [(line, np.asarray(line.x, float), np.asarray(line.y, float)) for line in lines]
    arrays = [each for each in arrays if np.isfinite(each[2]).any()]
    if not arrays:
        return None
    finite = np.concatenate([y[np.isfinite(y)] for _, _, y in arrays])
    every_x = np.concatenate([x for _, x, _ in arrays])
    x_low, x_high = x_range or (float(every_x.min()), float(every_x.max()))
    x_high = x_high if x_high > x_low else x_low + 1
    low, high = min(0.0, float(finite.min())), float(finite.max())
    y_values = _ticks(low, high if high > low else low + 1)
    y_low, y_high = min(low, y_values[0]), max(high, y_values[-1])
    if most is not None:
        y_high = min(y_high, most)

    def to_x(values: ArrayLike) -> NDArray[np.float64]:
        values = np.asarray(values, np.float64)
        return LEFT + (values - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def to_y(values: ArrayLike) -> NDArray[np.float64]:
        values = np.asarray(values, np.float64)
        return HEIGHT - BOTTOM - (values - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    drawn = []
    for line, x, y in arrays:
        kept = thin(y)
        px, py = to_x(x[kept]), to_y(y[kept])
        marked = np.isfinite(py) & (line.marked and len(x) <= _MOST_MARKED or len(x) == 1)
        markers = [(round(a, 1), round(b, 1)) for a, b in zip(px[marked], py[marked], strict=True)]
        drawn.append(DrawnLine(line.name, _path(px, py), markers, _summary(x, y)))
    x_values = [v for v in _ticks(x_low, x_high) if x_low <= v <= x_high]
    y_values = [v for v in y_values if y_low <= v <= y_high]
    return Chart(
        title,
        x_label,
        y_label,
        drawn,
        [(round(float(to_x(v)), 1), f"{v:g}") for v in x_values],
        [(round(float(to_y(v)), 1), f"{v:g}") for v in y_values],
    )


def thin(y: NDArray[np.float64], most: int = _MOST_POINTS) -> NDArray[np.int64]:
    """Choose points of a long line so that none of its peaks is lost.

    Args:
        y: (P,) values; those that are not finite are kept as the breaks they are.
        most: about as many points are kept.

    Returns:
        (Q,) int64 indices, ascending: all of a short line; of a long one the ends and, of equally
        long stretches, the lowest and the highest value.
    """
    if len(y) <= most:
        return np.arange(len(y))
    kept = {0, len(y) - 1}
    for part in np.array_split(np.arange(len(y)), most // 2):
        values = y[part]
        broken = ~np.isfinite(values)
        if broken.any():
            kept.add(int(part[broken.argmax()]))
        if not broken.all():
            kept.add(int(part[np.where(broken, np.inf, values).argmin()]))
            kept.add(int(part[np.where(broken, -np.inf, values).argmax()]))
    return np.array(sorted(kept))


def _path(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    parts, pen_down = [], False
    for a, b in zip(x, y, strict=True):
        if np.isfinite(b):
            parts.append(f"{'L' if pen_down else 'M'}{a:.1f} {b:.1f}")
        pen_down = bool(np.isfinite(b))
    return "".join(parts)


def _summary(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    known = np.flatnonzero(np.isfinite(y))
    places = {
        "first": known[0],
        "last": known[-1],
        "lowest": known[y[known].argmin()],
        "highest": known[y[known].argmax()],
    }
    return ", ".join(f"{word} {y[i]:.3g} at {x[i]:g}" for word, i in places.items())


def _ticks(low: float, high: float) -> list[float]:
    values = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [round(float(value), 12) for value in values]
