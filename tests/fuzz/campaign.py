"""Many cases in processes of their own, each of which may die without ending the rest."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .targets import REPOSITORY
from .worker import GOOD, SHARES, TARGETS, Limits, keep

_BATCH = 10_000
# A case that hangs inside a library's own code cannot be stopped by a signal's handler.
_PATIENCE = 2.0


@dataclass
class Tally:
    """What came of the cases of one target.

    Attributes:
        outcomes: how many cases ended in which outcome.
        findings: for each case that fell out of the rule a text, beside the case's file.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Path] = field(default_factory=list)


def split_runs(runs: int, targets: list[str]) -> dict[str, int]:
    """Divide cases among targets; the numbers sum to `runs`."""
    shares = {name: SHARES.get(name, 1.0) for name in targets}
    counts = {name: int(runs * share / sum(shares.values())) for name, share in shares.items()}
    counts[targets[0]] += runs - sum(counts.values())
    return counts


def run_campaign(
    runs: int,
    seed: int,
    output: Path,
    *,
    targets: list[str] | None = None,
    workers: int = 1,
    seconds: float = float("inf"),
    limits: Limits | None = None,
) -> dict[str, Tally]:
    """Run cases of several targets.

    Args:
        runs: cases in all.
        seed: with it and its number, a case is always the same.
        output: folder for the files of findings and their tracebacks.
        targets: names from `TARGETS`; all without.
        workers: processes at a time.
        seconds: no further case begins after so long.
        limits: of one case.

    Returns:
        {target: tally}.
    """
    end = time.monotonic() + seconds
    counts = split_runs(runs, targets or list(TARGETS))
    tallies = {name: Tally() for name in counts}
    jobs = [
        (start, name, min(start + _BATCH, count))
        for name, count in counts.items()
        for start in range(0, count, _BATCH)
    ]
    jobs.sort()  # so that each target has its share of the time
    with ThreadPoolExecutor(workers) as pool:
        futures = [
            (name, pool.submit(_run_batch, name, seed, (start, stop), output, end, limits))
            for start, name, stop in jobs
        ]
        for name, future in futures:
            batch = future.result()
            tallies[name].outcomes += batch.outcomes
            tallies[name].findings += batch.findings
    return tallies


def _run_batch(
    target: str,
    seed: int,
    cases: tuple[int, int],
    output: Path,
    end: float,
    limits: Limits | None,
) -> Tally:
    tally = Tally()
    start, stop = cases
    while start < stop and time.monotonic() < end:
        start = _run_process(target, seed, (start, stop), output, end, limits or Limits(), tally)
    return tally


def _run_process(
    target: str,
    seed: int,
    cases: tuple[int, int],
    output: Path,
    end: float,
    limits: Limits,
    tally: Tally,
) -> int:
    """Run cases until the process ends or dies; returns the next case."""
    next_case, stop = cases
    command = [sys.executable, "-m", f"{__package__}.worker", "--seed", str(seed)]
    command += ["--target", target, "--start", str(next_case), "--stop", str(stop)]
    command += ["--cpu-seconds", str(limits.cpu_seconds), "--memory", str(limits.memory)]
    command += ["--wall-seconds", str(limits.wall_seconds), "--output", str(output.resolve())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as folder,
        tempfile.TemporaryFile() as errors,
    ):
        environment["TMPDIR"] = folder  # so that what a process leaves when it dies goes with it
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdout is not None
        lines = _Lines(process.stdout.fileno())
        begun: dict[str, Any] | None = None
        outcome = ""
        try:
            while True:
                patience = 600.0 if begun is None else limits.wall_seconds * _PATIENCE
                line = lines.next(patience)
                if line is None:
                    outcome = "hang" if lines.waiting else "crash"
                    break
                if "begin" in line:
                    begun = line
                    continue
                assert begun is not None and line["end"] == begun["begin"] == next_case
                tally.outcomes[line["outcome"]] += 1
                if line["outcome"] not in GOOD:
                    tally.findings += output.glob(f"{begun['name']}-*.txt")
                begun, next_case = None, next_case + 1
                if time.monotonic() > end:
                    break
        finally:
            process.kill()
            status = process.wait()
            process.stdout.close()
        if begun is not None:
            errors.seek(0)
            detail = f"exit status {status}\n{errors.read().decode(errors='replace')[-20_000:]}"
            tally.outcomes[outcome] += 1
            tally.findings.append(keep(output, begun, outcome, detail).with_suffix(".txt"))
            next_case += 1
        elif next_case < stop and outcome:
            errors.seek(0)
            raise RuntimeError(f"no case of {target} was begun: {errors.read().decode()[-5000:]}")
    return next_case


class _Lines:
    """Lines of JSON from a pipe, each within its time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""
        self.waiting = False

    def next(self, seconds: float) -> dict[str, Any] | None:
        """The next line; None at the end, or where `waiting` is set after so many seconds."""
        while b"\n" not in self._rest:
            self.waiting = not select.select([self._descriptor], [], [], seconds)[0]
            data = b"" if self.waiting else os.read(self._descriptor, 1 << 16)
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))
