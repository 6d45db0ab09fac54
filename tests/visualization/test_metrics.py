"""Oracle: files written by hand as Detectron2's `JSONWriter` writes them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellseg_d2.errors import CellDataError
from cellseg_d2.visualization.metrics import Series, read_metrics


def write(path: Path, *records: dict[str, Any], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


def points(series: Series) -> list[tuple[int, float]]:
    return list(zip(series.iterations.tolist(), series.values.tolist(), strict=True))


def test_each_metric_has_its_points(tmp_path: Path) -> None:
    path = write(
        tmp_path / "metrics.json",
        {"iteration": 19, "total_loss": 2.5, "lr": 0.1},
        {"iteration": 39, "total_loss": 2, "segm/AP": float("nan")},
    )
    metrics = read_metrics(path)
    assert list(metrics) == ["total_loss", "lr", "segm/AP"]
    assert points(metrics["total_loss"]) == [(19, 2.5), (39, 2.0)]
    assert points(metrics["lr"]) == [(19, 0.1)]
    assert np.isnan(metrics["segm/AP"].values).all()


def test_after_a_resume_the_later_run_counts(tmp_path: Path) -> None:
    given_up = [{"iteration": i, "total_loss": 9.0} for i in (39, 59, 79)]
    path = write(
        tmp_path / "metrics.json",
        {"iteration": 19, "total_loss": 3.0},
        *given_up,
        {"iteration": 39, "total_loss": 2.0},
        {"iteration": 59, "total_loss": 1.0},
    )
    assert points(read_metrics(path)["total_loss"]) == [(19, 3.0), (39, 2.0), (59, 1.0)]


def test_one_write_may_hold_earlier_iterations_of_other_metrics(tmp_path: Path) -> None:
    # The writer groups what it has by iteration, in no order.
    path = write(
        tmp_path / "metrics.json",
        {"iteration": 39, "total_loss": 2.0},
        {"iteration": 35, "segm/AP": 50.0},
    )
    metrics = read_metrics(path)
    assert points(metrics["total_loss"]) == [(39, 2.0)]
    assert points(metrics["segm/AP"]) == [(35, 50.0)]


@pytest.mark.parametrize("tail", ['{"iteration": 39, "total_l', "[" * 50_000, "17", "\0\0\0"])
def test_a_half_written_line_is_left_out_with_a_warning(
    tmp_path: Path, tail: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "metrics.json", {"iteration": 19, "total_loss": 2.5}, tail=tail)
    with caplog.at_level(logging.WARNING):
        assert points(read_metrics(path)["total_loss"]) == [(19, 2.5)]
    assert "line 2" in caplog.text


def test_text_and_booleans_are_no_metrics(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.json", {"iteration": 1, "a": "x", "b": True, "c": 1})
    assert list(read_metrics(path)) == ["c"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"hello\n", b'{"iteration": 3}\n', b"\xff\xfe"])
def test_a_file_without_metrics_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.json"
    path.write_bytes(content)
    with pytest.raises(CellDataError, match="metrics.json"):
        read_metrics(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CellDataError, match="No such file"):
        read_metrics(tmp_path / "metrics.json")
