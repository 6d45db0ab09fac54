"""What the benchmark's command says and how it ends; what it measures asserts its own results."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cv2
import pytest
import torch


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(repository / "tools"))
    spec = importlib.util.spec_from_file_location("benchmark", repository / "tools/benchmark.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads(), cv2.getNumThreads()
    yield module
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])
    logging.disable(logging.NOTSET)


def table(script: ModuleType, at_least: float, at_most: float) -> dict:
    """One ratio of 4 and one cost of 1.5, with these goals."""

    def ratios() -> Iterator[object]:
        yield script.Comparison("fast part", "slow one", 4.0, 1.0, goal=at_least)
        yield script.Comparison("many", "few", 1.0, 1.5, goal=at_most, at_most=True)

    def figures() -> Iterator[object]:
        yield script.Figure("wait", 12.5, "%")

    return {"ratios": ratios, "figures": figures}


@pytest.mark.parametrize(
    ("at_least", "at_most", "missed"),
    [
        (4.0, 1.5, []),
        (4.1, 1.5, ["missed: fast part: 4.00, at least 4.1"]),
        (4.0, 1.4, ["missed: many: 1.50, at most 1.4"]),
        (9, 1, ["missed: fast part: 4.00, at least 9", "missed: many: 1.50, at most 1"]),
    ],
)
def test_a_missed_goal_is_named_and_ends_with_status_1(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at_least: float,
    at_most: float,
    missed: list[str],
) -> None:
    monkeypatch.setattr(script, "BENCHMARKS", table(script, at_least, at_most))
    assert script.main([]) == bool(missed)
    shown = capsys.readouterr()
    assert shown.err.splitlines() == missed
    assert shown.out.count("MISSED") == len(missed)
    assert "12.5 %" in shown.out


def test_benchmarks_are_chosen_by_name(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "BENCHMARKS", table(script, 9, 1))
    assert script.main(["figures"]) == 0
    shown = capsys.readouterr().out
    assert "12.5 %" in shown and "fast part" not in shown


def test_an_unknown_name_is_wrong_usage(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["mapper", "no-such-thing"])
    assert ended.value.code == 2
    assert "no-such-thing" in capsys.readouterr().err
