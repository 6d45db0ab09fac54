"""A run's charts show what training and evaluation wrote."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cellseg_d2.visualization.metrics import Series
from cellseg_d2.visualization.report.run_charts import evaluation_charts, training_charts
from cellseg_d2.visualization.report.sources import RunSources

from .runs import CLASSES


def test_training_is_drawn_over_the_whole_run(run: RunSources) -> None:
    charts = {chart.title: chart for chart in training_charts(run)}
    assert {"Total loss", "Learning rate", "Mask AP, validation"} <= charts.keys()
    assert "first 3 at 19, last 0.25 at 239" in charts["Total loss"].description
    # A score measured once, at the end, lies at the same right edge.
    (point,) = charts["Mask AP, validation"].lines[0].markers
    assert charts["Total loss"].lines[0].path.endswith(f"L{point[0]:.1f} ") or point[0] > 370


def test_classes_come_in_the_configs_order(run: RunSources) -> None:
    series = Series(np.array([9]), np.array([5.0]))
    metrics = {f"segm/AP-{name}": series for name in sorted(CLASSES) if "/" not in name}
    (chart,) = training_charts(replace(run, metrics=metrics))
    assert [line.name for line in chart.lines] == [name for name in CLASSES if "/" not in name]


def test_without_metrics_there_is_no_curve(run: RunSources) -> None:
    assert training_charts(replace(run, metrics={})) == []


def test_precision_by_class_and_f1_over_iou(run: RunSources) -> None:
    precision, over_iou = evaluation_charts(run)
    known = run.details["precision_recall"]["precision"]
    assert [line.name for line in precision.lines] == [
        name for name in CLASSES if known[name] is not None
    ]
    assert [line.name for line in over_iou.lines] == ["F1", "precision", "recall"]
    f1 = run.details["over_iou"]["F1"]
    assert f"first {f1[0]:.3g} at 0.5, last {f1[-1]:.3g} at 0.95" in over_iou.lines[0].summary


def test_what_was_not_measured_is_left_out(run: RunSources) -> None:
    details = {key: value for key, value in run.details.items() if key != "over_iou"}
    curves = {**details["precision_recall"], "precision": {"a": None}}
    assert len(evaluation_charts(replace(run, details=details))) == 1
    assert evaluation_charts(replace(run, details={**details, "precision_recall": curves})) == []
