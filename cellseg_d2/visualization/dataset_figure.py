"""A page of figures about a data set: class counts, instance sizes, density, image sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ..data.inspection import Inspection
from ..data.inspection_report import SMALL

Color = tuple[float, float, float]

_INK, _MUTED, _GRID = "#222222", "#666666", "#e4e4e4"
_MOST_NAMES = 32
_MOST_LABELLED_SIZES = 6


def draw_inspection(
    inspection: Inspection,
    path: str | PathLike[str],
    *,
    class_names: Sequence[str],
    class_colors: Sequence[tuple[int, int, int]],
) -> None:
    """Draws a data set's figures and writes them as a PNG.

    Args:
        inspection: with at least one image; images at fault are not in it.
        path: the PNG, 1,950 × 1,350 pixels.
        class_names: one for each category.
        class_colors: RGB, 0–255, one for each category.

    Raises:
        ValueError: there is no image to draw.
        OSError: the file cannot be written.
    """
    if not inspection.images:
        raise ValueError("there is no sound annotated image to draw")
    colors: list[Color] = [(r / 255, g / 255, b / 255) for r, g, b in class_colors]
    areas = [
        np.concatenate(
            [
                np.zeros(0, np.int64),
                *(image.layers[k].areas for image in inspection.images if k in image.layers),
            ]
        )
        for k in range(inspection.num_classes)
    ]
    # A figure of its own and no pyplot: nothing global is touched, and no display is needed.
    figure = Figure(figsize=(13, 9), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15, wspace=0.04, hspace=0.06)  # type: ignore[call-arg, union-attr]
    total = sum(map(len, areas))
    figure.suptitle(
        f"{_counted(len(inspection.images), 'image')}, {_counted(total, 'instance')}",
        x=0.012,
        ha="left",
        fontsize=17,
        fontweight="bold",
        color=_INK,
    )
    axes = figure.subplots(2, 2)
    _draw_counts(axes[0, 0], areas, class_names, colors)
    _draw_sizes(axes[0, 1], areas, class_names, colors)
    _draw_density(axes[1, 0], inspection, class_names, colors)
    _draw_image_sizes(axes[1, 1], inspection)
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper right", ncols=8, frameon=False, fontsize=11, labelcolor=_INK
    )
    figure.savefig(fspath(path), format="png")


def _style(axes: Axes, title: str, x_label: str, y_label: str, grid: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK, pad=10)
    axes.set_xlabel(x_label, color=_MUTED)
    axes.set_ylabel(y_label, color=_MUTED)
    axes.tick_params(colors=_MUTED, length=0)
    axes.grid(axis=grid, color=_GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _thousands(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _draw_counts(
    axes: Axes, areas: Sequence[np.ndarray], names: Sequence[str], colors: Sequence[Color]
) -> None:
    counts = [len(values) for values in areas]
    rows = np.arange(len(counts))[::-1]
    _style(axes, "Instances by class", "instances", "", "x")
    axes.barh(rows, counts, height=0.62, color=colors)
    axes.set_yticks(rows, names, color=_INK, fontsize=11)
    axes.set_xlim(0, max(1, *counts) * 1.22)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _thousands(axes.xaxis)
    for row, count in zip(rows, counts, strict=True):
        share = f"  ({count / sum(counts):.1%})" if count else ""
        axes.annotate(
            f"{count:,}{share}",
            (count, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
        )


def _draw_sizes(
    axes: Axes, areas: Sequence[np.ndarray], names: Sequence[str], colors: Sequence[Color]
) -> None:
    sides = [np.sqrt(values) for values in areas]
    everything = np.concatenate(sides)
    _style(axes, "Instance size", "√area in pixels, log scale", "share of the class", "y")
    if not everything.size:
        axes.text(0.5, 0.5, "no instances", transform=axes.transAxes, ha="center", color=_MUTED)
        return
    # Wide enough for the limit of small instances and the words beside it.
    low, high = min(everything.min() / 1.15, 4), max(everything.max() * 1.15, 100)
    bins = np.geomspace(low, high, 29)
    for values, name, color in zip(sides, names, colors, strict=True):
        if not values.size:
            continue
        share, _ = np.histogram(values, bins)
        label = f"{name}, median {np.median(values):.0f} px"
        axes.stairs(share / len(values), bins, color=color, linewidth=2, label=label)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [t for t in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048) if low <= t <= high]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_ylim(0, axes.get_ylim()[1] * 1.15)
    axes.axvline(SMALL, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"{(everything < SMALL).mean():.1%} below {SMALL} px",
        (SMALL, 1),
        xycoords=("data", "axes fraction"),
        xytext=(6, -4),
        textcoords="offset points",
        va="top",
        color=_MUTED,
        fontsize=9,
    )
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK, loc="upper left")


def _draw_density(
    axes: Axes, inspection: Inspection, names: Sequence[str], colors: Sequence[Color]
) -> None:
    counts = np.array(
        [
            [len(i.layers[k].areas) if k in i.layers else 0 for k in range(len(names))]
            for i in inspection.images
        ]
    )
    order = np.argsort(-counts.sum(axis=1), kind="stable")
    positions = np.arange(len(order))
    _style(axes, "Instances per image", "", "instances", "y")
    bottom = np.zeros(len(order))
    width = 0.8 if len(order) <= _MOST_NAMES else 1.0
    for category, (name, color) in enumerate(zip(names, colors, strict=True)):
        height = counts[order, category]
        axes.bar(positions, height, bottom=bottom, width=width, color=color, label=name)
        bottom += height
    _thousands(axes.yaxis)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(-0.7, max(len(order), 6) - 0.3)
    if len(order) > 1:
        median = np.median(bottom)
        axes.axhline(median, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"median {median:,g}",
            (1, median),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color=_INK,
            fontsize=9,
        )
    if len(order) <= _MOST_NAMES:
        shown = [inspection.images[index].name for index in order]
        shown = [name if len(name) <= 18 else f"{name[:8]}…{name[-8:]}" for name in shown]
        axes.set_xticks(positions, shown, rotation=90, fontsize=7.5)
    else:
        axes.set_xticks([])
        axes.set_xlabel("images, most instances first", color=_MUTED)


def _draw_image_sizes(axes: Axes, inspection: Inspection) -> None:
    annotated = Counter((image.width, image.height) for image in inspection.images)
    test = Counter((width, height) for height, width in inspection.test_sizes)
    _style(axes, "Image sizes (width × height)", "width in pixels", "height in pixels", "both")
    for sizes, label, look in (
        (annotated, "annotated", {"facecolor": "#55555599", "edgecolor": "#555555"}),
        (test, "test", {"facecolor": "none", "edgecolor": "#c2185b", "linewidth": 1.3}),
    ):
        if not sizes:
            continue
        width, height = np.array(list(sizes)).T
        area = 28 * np.sqrt(list(sizes.values()))
        axes.scatter(width, height, s=area, label=f"{label}, {sizes.total():,}", **look)
        if len(sizes) <= _MOST_LABELLED_SIZES:
            for size, count in sizes.items():
                axes.annotate(
                    f"{count:,} of {size[0]:,} × {size[1]:,}",
                    size,
                    xytext=(0, 11 if label == "annotated" else -18),
                    textcoords="offset points",
                    ha="center",
                    color=look["edgecolor"],
                    fontsize=9,
                )
    largest = max(max(size) for size in (*annotated, *test))
    axes.set_xlim(0, largest * 1.25)
    axes.set_ylim(0, largest * 1.25)
    axes.set_aspect("equal", adjustable="box")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    _thousands(axes.xaxis)
    _thousands(axes.yaxis)
    if test:
        axes.legend(
            frameon=False, fontsize=9, labelcolor=_INK, loc="upper left", bbox_to_anchor=(1, 1)
        )
