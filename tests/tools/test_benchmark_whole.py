"""The comparison of whole programs: its clock, its goals, and that the sides are one model."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _benchmarks(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository / "tools"))


def load(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{name}")


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(load("sides.parts").time, "perf_counter", clock)
    return clock


def test_a_part_inside_another_counts_to_the_outer_one(clock: Clock) -> None:
    parts = load("sides.parts").Parts("cpu")

    def inner() -> str:
        clock.seconds += 2
        return "inner"

    owner = SimpleNamespace(inner=inner)
    parts.watch(owner, "inner", "b")
    with parts.time("a"):
        clock.seconds += 1
        assert owner.inner() == "inner"
    owner.inner()
    assert parts.take() == {"a": 3.0, "b": 2.0}
    assert parts.take() == {}


def test_time_up_to_an_error_counts(clock: Clock) -> None:
    parts = load("sides.parts").Parts("cpu")

    def fail() -> None:
        clock.seconds += 4
        raise ValueError("no")

    owner = SimpleNamespace(fail=fail)
    parts.watch(owner, "fail", "a")
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            owner.fail()
    assert parts.take() == {"a": 8.0}


def test_a_watched_static_method_stays_one(clock: Clock) -> None:
    class Owner:
        @staticmethod
        def add(a: int, b: int) -> int:
            clock.seconds += 1
            return a + b

    parts = load("sides.parts").Parts("cpu")
    parts.watch(Owner, "add", "a")
    assert Owner.add(1, 2) == 3 and Owner().add(3, 4) == 7
    assert parts.take() == {"a": 2.0}


@pytest.mark.parametrize(
    ("memory", "goal", "reached"), [(300, 3, True), (299, 3, False), (1, 0, True)]
)
def test_a_goal_of_memory_is_reached_as_well_as_that_of_time(
    memory: float, goal: float, reached: bool
) -> None:
    comparison = load("timing").Comparison
    kinds = {"reference_memory": memory, "our_memory": 100, "memory_goal": goal}
    assert comparison("a", "b", 2.0, 1.0, goal=2, **kinds).reached == reached
    assert not comparison("a", "b", 1.9, 1.0, goal=2, **kinds).reached


def test_unknown_memory_reaches_no_goal_of_memory() -> None:
    assert not load("timing").Comparison("a", "b", 2.0, 1.0, goal=1, memory_goal=3).reached


def test_the_split_of_a_step_adds_up() -> None:
    whole = load("whole")
    side = whole.Measured(1.0, {"data": 0.25, "targets and losses": 0.5}, 0, None)
    figure = whole.split("step", side, "network")
    assert figure.value == 1000
    assert figure.unit == "ms: data 250.0, targets and losses 500.0, network 250.0"


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(exponent: float) -> None:
    values = [50, 100, 400]
    seconds = [0.003 * value**exponent for value in values]
    assert load("growth").fit_exponent(values, seconds) == pytest.approx(exponent, abs=1e-9)


def test_growth_is_drawn_with_its_exponents(tmp_path: Path) -> None:
    growth = load("growth")
    lines = [
        growth.Growth(step, axis, [1, 2, 4], [0.01, 0.02, 0.04])
        for axis in growth.AXES
        for step in ("parse", "predict")
    ]
    load("growth_plot").draw(lines, tmp_path / "new" / "growth.png")
    assert (tmp_path / "new" / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert growth.describe(lines[0]).unit.endswith("10.0 to 40.0 ms from 1 to 4")


def test_images_have_the_cells_and_classes_asked_for(tmp_path: Path) -> None:
    from cellseg_d2.data import load_cell_dicts

    load("sides.case").write_images(tmp_path, images=2, cells=9, side=64, num_classes=3)
    records = load_cell_dicts(tmp_path, num_classes=3)
    classes = [[a["category_id"] for a in record["annotations"]] for record in records]
    assert classes == [[0] * 3 + [1] * 3 + [2] * 3] * 2


def test_every_step_of_a_growth_is_timed() -> None:
    growth = load("growth")
    seconds = growth.measure(growth.Setting(images=1, cells=5, pixels=64**2, classes=5))
    assert set(seconds) == {"parse", "sample", "training step", "predict", "evaluate"}
    assert min(seconds.values()) > 0


@pytest.mark.slow
def test_the_sides_are_one_model(tmp_path: Path) -> None:
    case, worker = load("sides.case"), load("sides.worker")
    case.write(case.Case(case.SMALL, cells=12, side=96, images=2, rounds=1), tmp_path)
    losses, answers = {}, {}
    for side in ("ours", "stock", "vision"):
        with worker.Worker(side, tmp_path, "cpu", 1) as process:
            before = process.memory()
            runs = [process.run("train") for _ in range(2)]
            answers[side] = process.run("predict")["result"]
            assert process.memory() > before
            if side == "stock":
                load("whole").check_codes(process, tmp_path / "postprocessed.pkl")
        losses[side] = [run["result"] for run in runs]
        assert set(runs[0]["parts"]) == {"data", "targets and losses"}
        assert 0 < sum(runs[1]["parts"].values()) < runs[1]["seconds"]
    # Two iterations with random numbers of their own, the second with weights that the first moved.
    np.testing.assert_allclose(losses["ours"], losses["stock"], rtol=1e-5)
    assert losses["ours"][0] != losses["ours"][1]
    assert answers["ours"]["rles"] == [12, 12] == answers["stock"]["rles"]
    torch.testing.assert_close(
        torch.tensor(answers["ours"]["scores"]),
        torch.tensor(answers["stock"]["scores"]),
        rtol=0,
        atol=1e-5,
    )
    assert answers["vision"]["rles"] == [12, 12] and np.isfinite(losses["vision"]).all()
