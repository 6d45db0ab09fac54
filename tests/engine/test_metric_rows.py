"""Rows of metrics on resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cellseg_d2.engine.metric_rows import cut_rows, is_due


def write(path: Path, iterations: list[int], tail: str = "") -> bytes:
    lines = [json.dumps({"iteration": i, "a": float("nan")}) + "\n" for i in iterations]
    path.write_text("".join(lines) + tail)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("iterations", "tail", "start", "kept"),
    [
        ([9, 19, 29], "", 20, [9, 19]),
        ([9, 19, 29], "", 30, [9, 19, 29]),
        ([9, 19, 29], "", 0, []),
        ([9, 19], '{"iteration": 2', 20, [9, 19]),
        ([9, 19], '{"iteration": 12}', 20, [9, 19]),  # whole, but its end is missing
        ([9, 19], '{"step": 2}\n[3]\n', 20, [9, 19]),
        ([], "", 5, []),
    ],
)
def test_what_comes_again_is_cut_off(tmp_path: Path, iterations, tail, start, kept) -> None:
    path = tmp_path / "metrics.json"
    write(path, iterations, tail)
    cut_rows(path, start)
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == kept
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    cut_rows(tmp_path / "metrics.json", 3)
    assert not list(tmp_path.iterdir())


def test_a_file_that_fits_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write(path, [1, 2])
    before = path.stat()
    cut_rows(path, 3)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_ends_of_periods() -> None:
    assert [i for i in range(10) if is_due(i, 4)] == [3, 7]
    assert not any(is_due(i, 0) for i in range(10))
