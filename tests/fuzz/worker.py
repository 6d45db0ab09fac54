"""The process that runs cases: each in its time, its memory, and watched by an audit hook.

What it does goes to standard output line by line, so that the process that started it knows at
which case it died.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from .checkpoint_target import CheckpointTarget
from .faulty import FaultyTarget
from .targets import Target, TiffTarget
from .text_targets import CacheTarget, ConfigTarget, IdMapTarget, SubmissionTarget

TARGETS: dict[str, Callable[[Path], Target]] = {
    "tiff": TiffTarget,
    "submission": SubmissionTarget,
    "checkpoint": CheckpointTarget,
    "config": ConfigTarget,
    "id_map": IdMapTarget,
    "cache": CacheTarget,
}
# Of the cases; a TIFF has by far the most to change.
SHARES = {
    "tiff": 0.5,
    "submission": 0.15,
    "checkpoint": 0.15,
    "config": 0.06,
    "id_map": 0.07,
    "cache": 0.07,
}
GOOD = ("read", "refused")

_RUNS_CODE = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"}
_CHANGES_FILES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link"}
_REACHES_OUT = {"socket.connect", "socket.getaddrinfo", "urllib.Request"}
_FORBIDDEN = _RUNS_CODE | _CHANGES_FILES | _REACHES_OUT


class MixedTarget(Target):
    """All targets in one process, which saves a short run the start of six."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._targets = {}
        for name, make in TARGETS.items():
            (folder / name).mkdir()
            self._targets[name] = make(folder / name)
            seeds = self._targets[name].seeds
            self.seeds |= {f"{name}/{seed}": data for seed, data in seeds.items()}
        self._chosen: Target = self._targets["tiff"]

    def mutate(self, rng: Random) -> tuple[str, bytes]:
        (name,) = rng.choices(list(SHARES), list(SHARES.values()))
        seed, data = self._targets[name].mutate(rng)
        return f"{name}/{seed}", data

    def change(self, rng: Random, name: str, data: bytes) -> bytes:
        target, _, seed = name.partition("/")
        return self._targets[target].change(rng, seed, data)

    def path(self, name: str) -> Path:
        target, _, seed = name.partition("/")
        self._chosen = self._targets[target]
        return self._chosen.path(seed)

    def check(self, path: Path) -> bool:
        return self._chosen.check(path)


# Not of the command line.
_OTHERS: dict[str, Callable[[Path], Target]] = {"mixed": MixedTarget, "faulty": FaultyTarget}


class OvertimeError(BaseException):
    """The case took too long; no `except Exception` of the reader's may hold it."""


class EscapeError(BaseException):
    """The case ran a program, wrote a file or reached for the network."""


@dataclass(frozen=True)
class Limits:
    """What one case may use.

    Attributes:
        cpu_seconds: of processor time.
        wall_seconds: of real time, larger, since other processes share the processor.
        memory: bytes of address space beyond what the process has when it begins.
    """

    cpu_seconds: float = 5.0
    wall_seconds: float = 30.0
    memory: int = 1 << 30


class _Formatting(logging.Handler):
    """Formats what is logged, so that a value that cannot be formatted is found."""

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)


_watching = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event in _FORBIDDEN:
        raise EscapeError(f"{event} {arguments!r:.300}")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise EscapeError(f"open {arguments!r:.300}")


def _overtime(number: int, _: object) -> None:
    raise OvertimeError("processor time" if number == signal.SIGPROF else "real time")


@contextmanager
def _bounded(limits: Limits) -> Iterator[None]:
    global _watching
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, limits.wall_seconds)
    _watching = True
    try:
        yield
    finally:
        _watching = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def run_case(target: Target, path: Path, limits: Limits) -> tuple[str, str]:
    """Run one case.

    Returns:
        the outcome, one of `GOOD` or what went wrong, and the traceback of the latter.
    """
    try:
        with _bounded(limits):
            return ("read" if target.check(path) else "refused"), ""
    except (Exception, OvertimeError, EscapeError) as error:
        return _name(error), traceback.format_exc()


def _name(error: BaseException) -> str:
    """What went wrong, in a word or two."""
    if isinstance(error, OvertimeError):
        return "time"
    if isinstance(error, EscapeError):
        return "escape"
    if isinstance(error, MemoryError):
        return "memory"
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, AssertionError) and raised_in.startswith(str(Path(__file__).parent)):
        return "wrong result"
    return "other error"


def prepare() -> None:
    """Set up the process; the signals, hook and handler stay."""
    faulthandler.enable()
    sys.addaudithook(_audit)
    signal.signal(signal.SIGPROF, _overtime)
    signal.signal(signal.SIGALRM, _overtime)
    logging.basicConfig(level=logging.INFO, handlers=[_Formatting()])
    warnings.simplefilter("ignore")


def limit_memory(memory: int) -> None:
    """Limit the address space to what it is now and so much more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def keep(output: Path, begun: dict[str, Any], outcome: str, detail: str) -> Path:
    """Keep the file of a case, and beside it what happened.

    Args:
        output: a folder.
        begun: what was said when the case began.
        outcome: of the case.
        detail: a traceback.

    Returns:
        the copy of the file.
    """
    output.mkdir(parents=True, exist_ok=True)
    source = Path(begun["path"])
    kept = output / f"{begun['name']}-{outcome.replace(' ', '_')}{source.suffix}"
    if source.is_file():
        shutil.copyfile(source, kept)
    kept.with_suffix(".txt").write_text(f"from {begun['from']}\n{detail}", errors="replace")
    return kept


def say(**fields: Any) -> None:
    """Write a line, at once and whole."""
    os.write(1, json.dumps(fields).encode() + b"\n")


def main() -> None:
    """Run the cases of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--start", type=int, required=True)
    parser.add_argument("--stop", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cpu-seconds", type=float, default=Limits.cpu_seconds)
    parser.add_argument("--wall-seconds", type=float, default=Limits.wall_seconds)
    parser.add_argument("--memory", type=int, default=Limits.memory)
    args = parser.parse_args()
    limits = Limits(args.cpu_seconds, args.wall_seconds, args.memory)
    prepare()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        target = (TARGETS | _OTHERS)[args.target](Path(folder))
        for name, data in target.seeds.items():  # imports and caches of the libraries fill up
            path = target.path(name)
            path.write_bytes(data)
            if not target.check(path):
                raise RuntimeError(f"the seed {name} of {args.target} is refused")
        limit_memory(limits.memory)
        for case in range(args.start, args.stop):
            name, data = target.mutate(Random(f"{args.seed} {args.target} {case}"))
            path = target.path(name)
            path.write_bytes(data)
            begun = {
                "begin": case,
                "name": f"{args.target}-{args.seed}-{case}",
                "path": str(path),
                "from": name,
            }
            say(**begun)
            outcome, detail = run_case(target, path, limits)
            if outcome not in GOOD:
                keep(args.output, begun, outcome, detail)
            say(end=case, outcome=outcome)


if __name__ == "__main__":
    main()
