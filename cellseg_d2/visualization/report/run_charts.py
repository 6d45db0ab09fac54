"""The charts of a run: its training's curves, and the curves behind its scores."""

from __future__ import annotations

from ..curve_panels import PANELS
from .charts import Chart, ChartLine, draw_chart
from .sources import RunSources

_PERCENT = (0.0, 100.0)


def training_charts(run: RunSources) -> list[Chart]:
    """Return the training's curves, those that ``tools/plot_metrics.py`` plots."""
    if not run.metrics:
        return []
    end = 1 + max(int(series.iterations[-1]) for series in run.metrics.values())
    order = {name: place for place, name in enumerate(run.class_names)}
    found = []
    for panel in PANELS:
        # Classes in their order here, as in all other charts.
        lines = sorted(panel.lines(run.metrics), key=lambda line: order.get(line.name, -1))
        found.append(
            draw_chart(
                panel.title,
                "iteration",
                panel.unit,
                [
                    ChartLine(line.name, line.series.iterations, line.series.values, line.measured)
                    for line in lines
                ],
                x_range=(0, end),
                most=_PERCENT[1] if panel.unit == "percent" else None,
            )
        )
    return [chart for chart in found if chart is not None]


def evaluation_charts(run: RunSources) -> list[Chart]:
    """Return precision over recall by class, and F1 over the IoU that a match needs."""
    curves = run.details["precision_recall"]
    by_class = [
        ChartLine(name, curves["recall"], [float("nan") if v is None else v for v in precision])
        for name, precision in curves["precision"].items()
        if precision is not None
    ]
    title = f"Precision by class at IoU {curves['iou']:g}"
    charts = [
        draw_chart(
            title, "recall, percent", "percent", by_class, x_range=_PERCENT, most=_PERCENT[1]
        )
    ]
    if "over_iou" in run.details:
        over = run.details["over_iou"]
        lines = [
            ChartLine(
                name, over["iou"], [float("nan") if v is None else v for v in over[name]], True
            )
            for name in ("F1", "precision", "recall")
        ]
        charts.append(
            draw_chart("Matches, whatever the class", "IoU", "percent", lines, most=_PERCENT[1])
        )
    return [chart for chart in charts if chart is not None]
