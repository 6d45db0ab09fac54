"""Charts lie where their numbers say; positions worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cellseg_d2.visualization.report import charts
from cellseg_d2.visualization.report.charts import ChartLine, draw_chart, thin

PLOT_RIGHT, PLOT_BOTTOM = charts.WIDTH - charts.RIGHT, charts.HEIGHT - charts.BOTTOM


def test_a_line_goes_from_corner_to_corner() -> None:
    chart = draw_chart("t", "x", "y", [ChartLine("a", [0, 5, 10], [0, 50, 100])])
    middle = ((charts.LEFT + PLOT_RIGHT) / 2, (charts.TOP + PLOT_BOTTOM) / 2)
    assert chart.lines[0].path == (
        f"M{charts.LEFT:.1f} {PLOT_BOTTOM:.1f}L{middle[0]:.1f} {middle[1]:.1f}"
        f"L{PLOT_RIGHT:.1f} {charts.TOP:.1f}"
    )
    assert chart.x_ticks[0] == (charts.LEFT, "0") and chart.x_ticks[-1] == (PLOT_RIGHT, "10")
    assert chart.y_ticks[0] == (PLOT_BOTTOM, "0") and chart.y_ticks[-1] == (charts.TOP, "100")
    assert "a: first 0 at 0, last 100 at 10, lowest 0 at 0, highest 100 at 10" in chart.description


def test_values_that_are_not_finite_break_a_line() -> None:
    chart = draw_chart("t", "x", "y", [ChartLine("a", range(5), [1, 2, math.nan, math.inf, 1])])
    assert [part.count("L") for part in chart.lines[0].path.split("M")[1:]] == [1, 0]


def test_points_are_marked_where_few_were_measured() -> None:
    def markers(count: int, marked: bool) -> int:
        line = ChartLine("a", range(count), np.ones(count), marked)
        return len(draw_chart("t", "x", "y", [line]).lines[0].markers)

    assert [markers(5, True), markers(5, False), markers(200, True), markers(1, False)] == [
        *(5, 0, 0, 1)
    ]


@pytest.mark.parametrize("lines", [[], [ChartLine("a", [], [])], [ChartLine("a", [1], [math.nan])]])
def test_there_is_no_chart_of_nothing(lines: list[ChartLine]) -> None:
    assert draw_chart("t", "x", "y", lines) is None


@pytest.mark.parametrize("value", [0.0, -3.0, 7.0])
def test_a_constant_lies_inside_of_the_plot(value: float) -> None:
    chart = draw_chart("t", "x", "y", [ChartLine("a", [1, 2], [value, value])])
    y = float(chart.lines[0].path.split("L")[1].split()[1])
    assert charts.TOP <= y <= PLOT_BOTTOM


def test_long_lines_keep_their_peaks() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=5000)
    y[1234], y[4321], y[2500] = 50, -50, np.nan
    kept = thin(y)
    assert len(kept) < 800 and (np.diff(kept) > 0).all()
    assert {0, 1234, 2500, 4321, 4999} <= set(kept.tolist())
    np.testing.assert_array_equal(thin(y[:300]), np.arange(300))
