"""Training curves from the `metrics.json` of one or several runs."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.typing import LineStyleType
from numpy.typing import ArrayLike, NDArray

from .curve_panels import PANELS, Line, Panel
from .metrics import Series, read_metrics
from .png import save_png

_DPI = 130
_PANEL_SIZE = (6.4, 3.7)  # inches
# Okabe & Ito's colours (2008), which stay apart for colour-blind readers; no yellow on white. A
# cascade with every head on has twelve losses.
_COLORS: tuple[str, ...] = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8A5FBF"),
    *("#882255", "#999933", "#999999", "#6B3D1E"),
)
# Told apart without colour: one for each run where colours say which metric it is.
_STYLES: tuple[LineStyleType, ...] = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_MOST_MARKED = 60

Runs = Mapping[str, Mapping[str, Series]]


def plot_metrics(
    metrics_json_paths: Mapping[str, str | PathLike[str]], output_png: str | PathLike[str]
) -> Path:
    """Draws a training's curves: losses, learning rate, and scores where there was an evaluation.

    Panels without data are left out. Iterations run along the bottom; where every run logged
    `epoch` at one rate, epochs run along the top.

    Args:
        metrics_json_paths: {label of a run: its `metrics.json`}, at least one.
        output_png: the picture.

    Returns:
        the picture's path.

    Raises:
        CellDataError: a file cannot be read or holds no metric.
        ValueError: there is no run, or no run has a metric that is plotted.
        OSError: the picture cannot be written.
    """
    runs = {label: read_metrics(path) for label, path in metrics_json_paths.items()}
    panels = [panel for panel in PANELS if any(panel.lines(metrics) for metrics in runs.values())]
    if not panels:
        raise ValueError("there is no loss, learning rate or AP to plot")
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    # A figure of its own: pyplot would keep global state and choose a backend.
    figure = Figure((_PANEL_SIZE[0] * columns, _PANEL_SIZE[1] * rows), _DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[call-arg, union-attr]
    epoch_length = _iterations_per_epoch(runs)
    end = max(int(series.iterations[-1]) for run in runs.values() for series in run.values())
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw_panel(axes, panel, runs)
        axes.set_xlim(0, 1.02 * (end + 1))
        if epoch_length:
            _add_epochs(axes, epoch_length)
    canvas.draw()
    return save_png(output_png, np.asarray(canvas.buffer_rgba())[:, :, :3].copy())


def _draw_panel(axes: Axes, panel: Panel, runs: Runs) -> None:
    lines = {label: panel.lines(metrics) for label, metrics in runs.items()}
    names = list(dict.fromkeys(line.name for found in lines.values() for line in found))
    for number, (label, found) in enumerate(lines.items()):
        for line in found:
            tint, dash = names.index(line.name), number
            if panel.color_by_run:
                tint, dash = dash, tint
            axes.plot(
                line.series.iterations,
                line.series.values,
                color=_COLORS[tint % len(_COLORS)],
                linestyle=_STYLES[dash % len(_STYLES)],
                linewidth=1.5,
                marker=_MARKERS[number % len(_MARKERS)] if _marked(line) else None,
                markersize=4,
                label=_entry(label, line.name, len(runs), len(names)),
            )
    axes.set_title(panel.title, fontsize=11, fontweight="bold")
    axes.set_xlabel("iteration")
    axes.set_ylabel(panel.unit)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["right"]].set_visible(False)
    axes.set_ylim(bottom=0)
    if panel.unit == "percent":
        axes.set_ylim(0, min(100.0, max(1.0, axes.get_ylim()[1])))
    # matplotlib would put a common power of ten where the epochs are.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    shown = {label: number for number, (label, found) in enumerate(lines.items()) if found}
    _add_legend(axes, shown, names, panel.color_by_run)


def _add_legend(
    axes: Axes, runs: Mapping[str, int], metrics: list[str], color_by_run: bool
) -> None:
    """Name the lines; of several runs and metrics, the colours and the styles, not each pair.

    Args:
        axes: of the panel.
        runs: {label: number among all runs} of those that have a line here.
        metrics: names, in the order of their numbers.
        color_by_run: see ``Panel``.
    """
    if len(runs) > 1 and len(metrics) > 1:
        numbers = dict(zip(metrics, range(len(metrics)), strict=True))
        tints, dashes = (runs, numbers) if color_by_run else (numbers, runs)
        handles: list[Artist] = [
            Line2D([], [], color=_COLORS[i % len(_COLORS)]) for i in tints.values()
        ]
        for i in dashes.values():
            marker = None if color_by_run else _MARKERS[i % len(_MARKERS)]
            style = _STYLES[i % len(_STYLES)]
            handles.append(Line2D([], [], color="#555555", linestyle=style, marker=marker))
        # A dollar sign would begin a formula.
        texts = [name.replace("$", r"\$") for name in (*tints, *dashes)]
    else:
        handles, texts = axes.get_legend_handles_labels()
    if len(texts) > 6:  # beside the plot, where it hides no line
        axes.legend(handles, texts, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    elif len(texts) > 1:
        legend = axes.legend(handles, texts, fontsize=8, framealpha=0.85)
        if all(np.size(line.get_xdata()) == 1 for line in axes.get_lines()):
            # A lone evaluation is on the right; "best" minds its centre, not its marker.
            legend.set_loc("upper left")


def _marked(line: Line) -> bool:
    points = len(line.series.iterations)
    return line.measured and points <= _MOST_MARKED or points == 1


def _entry(run: str, metric: str, num_runs: int, num_metrics: int) -> str:
    entry = metric if num_runs == 1 else run if num_metrics == 1 else f"{run}: {metric}"
    return entry.replace("$", r"\$")  # a dollar sign would begin a formula


def _iterations_per_epoch(runs: Runs) -> float | None:
    """The common rate of all runs; None where one has no epochs or they differ."""
    rates = []
    for metrics in runs.values():
        epochs = metrics.get("epoch")
        if epochs is None:
            return None
        usable = epochs.values > 0
        if not usable.any():
            return None
        # Iterations count from 0: after iteration i, i + 1 of them are done.
        rates.append(float(np.median((epochs.iterations + 1)[usable] / epochs.values[usable])))
    same = max(rates) <= 1.01 * min(rates)
    return rates[0] if same and np.isfinite(rates[0]) else None


def _add_epochs(axes: Axes, epoch_length: float) -> None:
    def to_epoch(iteration: ArrayLike) -> NDArray[np.float64]:
        return (np.asarray(iteration, np.float64) + 1) / epoch_length

    def to_iteration(epoch: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(epoch, np.float64) * epoch_length - 1

    top = axes.secondary_xaxis("top", functions=(to_epoch, to_iteration))
    top.set_xlabel("epoch", fontsize=9)
    top.xaxis.set_major_locator(_epoch_locator(axes, epoch_length))
    top.tick_params(labelsize=8)


def _epoch_locator(axes: Axes, epoch_length: float) -> MaxNLocator:
    whole = axes.get_xlim()[1] >= 2 * epoch_length
    return MaxNLocator(steps=[1, 2, 5, 10], integer=whole)
