"""A side in a process of its own, which runs what it is asked to and says what that took."""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from .parts import Parts

_TOOLS = Path(__file__).resolve().parents[2]
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Worker:
    """The parent's handle of a process that has built one side and waits.

    Args:
        side: module of this package: "ours", "stock" or "vision".
        folder: what ``case.write`` wrote.
        device: "cpu" or "cuda".
        threads: of PyTorch.
    """

    def __init__(self, side: str, folder: Path, device: str, threads: int) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-W", "ignore", "-m", "benchmarks.sides.worker"),
                *(side, str(folder), device, str(threads)),
            ],
            cwd=_TOOLS,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._name = side
        self._answer()

    def run(self, task: str) -> dict[str, Any]:
        """Run a method of the ``Side`` once: "train", "predict" or "targets".

        Returns:
            ``seconds``, ``parts`` (seconds by name) and ``result``.
        """
        return self._ask(f"run {task}")

    def memory(self) -> float:
        """Return the most MiB that the process has had; on CUDA, of the device's."""
        return float(self._ask("memory")["mebibytes"])

    def call(self, method: str, path: Path) -> None:
        """Call another method of the side with a path."""
        self._ask(f"{method} {path}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def forget_building(device: str) -> None:
    """Give back what building has left over, and set the peak back to what is resident."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def peak_mebibytes(device: str) -> float:
    """Return the most memory that this process has had since it was built.

    Not ``ru_maxrss`` where Linux says better: that begins at the size of the process which started
    this one, and cannot be set back.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        status = _STATUS.read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Build the side named on the command line and do what each line of the input says."""
    name, folder, device, threads = sys.argv[1:]
    # Answers have the pipe to themselves, whatever the libraries print.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(int(threads))
    parts = Parts(device)
    module = importlib.import_module(f"{__package__}.{name}")
    side = module.Side(Path(folder), device, parts)
    forget_building(device)
    print("{}", file=answers)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        answer: dict[str, Any] = {}
        if command == "run":
            parts.take()
            begin = parts.now()
            result = getattr(side, argument)()
            seconds = parts.now() - begin
            answer = {"seconds": seconds, "parts": parts.take(), "result": result}
        elif command == "memory":
            answer = {"mebibytes": peak_mebibytes(device)}
        else:
            getattr(side, command)(Path(argument))
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
