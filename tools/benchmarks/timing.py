"""Timing of one implementation against another, on the same input, with equal results."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Comparison:
    """Median seconds and peak memory (MiB above what was resident) of two implementations.

    Attributes:
        name: what is measured.
        reference: what it is measured against.
        goal: the ratio aimed at; ``at_most`` says on which side of it to be.
        memory_goal: how many times our memory the reference has to take at least; 0 for no goal.
    """

    name: str
    reference: str
    reference_seconds: float
    our_seconds: float
    goal: float
    at_most: bool = False
    reference_memory: float = float("nan")
    our_memory: float = float("nan")
    memory_goal: float = 0

    @property
    def ratio(self) -> float:
        """Reference over ours; the other way round for a cost that is limited (``at_most``)."""
        ratio = self.reference_seconds / self.our_seconds
        return 1 / ratio if self.at_most else ratio

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        in_time = self.ratio <= self.goal if self.at_most else self.ratio >= self.goal
        return in_time and (not self.memory_goal or self.memory_ratio >= self.memory_goal)

    @property
    def memory_ratio(self) -> float:
        """The reference's memory over ours; NaN where either is."""
        return self.reference_memory / max(self.our_memory, 1)


@dataclass(frozen=True)
class Figure:
    """A measured value without a reference or a goal, in ``unit``."""

    name: str
    value: float
    unit: str


def compare(
    name: str,
    reference_name: str,
    reference: Callable[[], Any],
    ours: Callable[[], Any],
    goal: float,
    repeats: tuple[int, int] = (3, 15),
) -> Comparison:
    """Time both and assert that their results are equal.

    Args:
        name: see ``Comparison``.
        reference_name: see ``Comparison.reference``.
        goal: see ``Comparison``.
        reference: called ``repeats[0]`` times.
        ours: called ``repeats[1]`` times.
        repeats: of which the medians are taken.
    """
    # Memory first, and ours before the reference's: later, freed memory would be used again.
    our_memory = peak_memory(ours)
    reference_memory = peak_memory(reference)
    expected, reference_seconds = median_seconds(reference, repeats[0])
    found, our_seconds = median_seconds(ours, repeats[1])
    if not equal(expected, found):
        raise AssertionError(f"{name}: the results differ from those of {reference_name}")
    return Comparison(
        name,
        reference_name,
        reference_seconds,
        our_seconds,
        goal,
        reference_memory=reference_memory,
        our_memory=our_memory,
    )


def median_seconds(function: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """Return the function's result and the median of its times."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - begin)
    return result, statistics.median(times)


def peak_memory(function: Callable[[], Any]) -> float:
    """Return by how many MiB the process's resident memory rises in a call; NaN but on Linux."""
    status = Path("/proc/self/status")

    def kibibytes(field: str) -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1])

    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident
        before = kibibytes("VmRSS:")
        function()
        return max(0, kibibytes("VmHWM:") - before) / 1024
    except OSError:
        return float("nan")


def equal(a: Any, b: Any) -> bool:
    """Compare nested tuples of arrays and tensors to the bit."""
    if isinstance(a, tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return bool(a == b)
