"""The picture of ``growth``: one panel for what is varied, one line for each step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from cellseg_d2.checkpoint.files import replace_file

if TYPE_CHECKING:
    from .growth import Growth

# After Okabe & Ito: told apart by the colour-blind as well.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00")
MARKERS = "osD^vP"


def draw(lines: Sequence[Growth], path: Path) -> None:
    """Draw milliseconds against each axis, both logarithmic, with the exponents.

    Args:
        lines: all steps along all axes.
        path: the PNG; it appears complete or not at all.
    """
    axes_names = list(dict.fromkeys(line.axis for line in lines))
    figure = Figure(figsize=(3.9 * len(axes_names), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(axes_names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, axes_names, strict=True):
        of_axis = [line for line in lines if line.axis == name]
        for line, color, marker in zip(of_axis, COLORS, MARKERS, strict=False):
            panel.plot(
                line.values,
                [1e3 * seconds for seconds in line.seconds],
                color=color,
                marker=marker,
                markersize=4,
                linewidth=1.4,
                label=f"{line.step}: {line.exponent:.2f}",
            )
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(name if name in ("images", "classes") else f"{name} an image")
        panel.set_xticks(of_axis[0].values)
        panel.xaxis.set_major_formatter(FuncFormatter(_number))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter(FuncFormatter(_number))
        panel.grid(True, color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.legend(
            title="exponents",
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.01),
            ncols=2,
            fontsize=8,
            title_fontsize=8,
            frameon=False,
        )
    panels[0].set_ylabel("ms of processor time, all images")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _number(value: float, _: int) -> str:
    return (
        f"{value / 1e3:.0f}k" if value >= 1e4 else f"{value:,.0f}" if value >= 1 else f"{value:g}"
    )
