"""How far a training is: a bar where somebody looks, lines in the log everywhere."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import TextIO

import torch
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

# Those that Detectron2's setup_logger gives handlers of their own, and the one above them.
_LOGGERS = ("", "fvcore", "detectron2", "cellseg_d2")
# Values are medians over so many iterations, as Detectron2 smooths them.
_WINDOW = 20
# Seconds between two texts of the bar.
_REFRESH = 0.2


class ProgressWriter(EventWriter):
    """Shows iteration, time left, epoch, losses, learning rate, images a second and memory.

    To be asked after every iteration. On a terminal there is one bar, kept below what is logged; a
    line goes to the log every ``period`` iterations and for the last one, also where the run is
    interrupted. While the bar is there these lines go to the log file alone.

    Args:
        max_iter: iterations of the whole training.
        images_per_iteration: over all processes.
        period: iterations between two lines.
        stream: where the bar is drawn if it is a terminal; None for standard error.
    """

    def __init__(
        self,
        max_iter: int,
        images_per_iteration: int,
        period: int = 20,
        stream: TextIO | None = None,
    ) -> None:
        self.max_iter = max_iter
        self.images_per_iteration = images_per_iteration
        self.period = period
        self.stream = sys.stderr if stream is None else stream
        self._bar: tqdm | None = None
        self._console = contextlib.ExitStack()
        self._first: tuple[int, float] | None = None
        self._seen = self._logged = -1
        self._refreshed = 0.0

    def write(self) -> None:
        """Show the newest iteration, if there is one since the last call."""
        storage = get_event_storage()
        # Not the storage's own count: after an interrupted iteration that one is ahead.
        iteration = storage.latest().get("total_loss", (0.0, -1))[1]
        if iteration < 0 or iteration == self._seen:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = iteration, now
            if _is_terminal(self.stream):
                self._open_bar(iteration)
        steps, self._seen = iteration - self._seen, iteration
        last = iteration + 1 >= self.max_iter
        if self._bar is not None:
            if last or now - self._refreshed > _REFRESH:
                self._refreshed = now
                self._bar.set_description_str(self._text(storage, now), refresh=False)
            self._bar.update(steps)
        if last or (iteration + 1) % self.period == 0:
            self._log(storage, now)

    def close(self) -> None:
        """Write the line of the last iteration, if there is none yet, and end the bar."""
        if self._logged != self._seen:
            self._log(get_event_storage(), time.monotonic())
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._console.close()

    def _open_bar(self, iteration: int) -> None:
        self._seen = iteration - 1
        self._bar = tqdm(
            total=self.max_iter,
            initial=iteration,
            file=self.stream,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar:12}| {n_fmt}/{total_fmt}  {desc}",
        )
        self._console.enter_context(_log_above_the_bar())

    def _log(self, storage: EventStorage, now: float) -> None:
        self._logged = self._seen
        logger.info("iteration %d/%d  %s", self._seen + 1, self.max_iter, self._text(storage, now))

    def _text(self, storage: EventStorage, now: float) -> str:
        latest, histories = storage.latest(), storage.histories()
        parts = []
        left = self._seconds_left(now)
        if left is not None:
            parts.append(f"{datetime.timedelta(seconds=round(left))} left")
        if "epoch" in latest:
            parts.append(f"epoch {latest['epoch'][0]:.2f}")
        parts.append(f"loss {histories['total_loss'].median(_WINDOW):.4g}")
        if "lr" in latest:
            parts.append(f"lr {latest['lr'][0]:.3g}")
        if "time" in histories:  # Detectron2's timer leaves out the first iterations
            rate = self.images_per_iteration / histories["time"].median(_WINDOW)
            parts.append(f"{rate:.3g} images/s")
        parts.append(f"{memory_in_use() / 2**30:.1f} GiB")
        parts += [
            f"{name.removeprefix('loss_')} {histories[name].median(_WINDOW):.3g}"
            for name in latest
            if name.startswith("loss_")
        ]
        return "  ".join(parts)

    def _seconds_left(self, now: float) -> float | None:
        """By the clock since the first iteration, so that evaluations count."""
        if self._first is None or self._seen == self._first[0]:
            return None
        first, start = self._first
        return (now - start) / (self._seen - first) * (self.max_iter - 1 - self._seen)


def memory_in_use() -> int:
    """Return the memory in use, in bytes: the GPU's at its peak, or without one the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        import resource

        # In bytes on macOS; the peak, where the present size is not to be had.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be seen there: some job systems give a terminal of no width."""
    if not stream.isatty():
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:  # no file of the system
        return True


@contextlib.contextmanager
def _log_above_the_bar() -> Iterator[None]:
    """Let what is logged to the console scroll above the bar, without this module's own lines."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = {id(handler) for each in loggers for handler in each.handlers}
    with logging_redirect_tqdm(loggers):
        for each in loggers:
            for handler in each.handlers:
                if id(handler) not in before:
                    handler.addFilter(lambda record: record.name != __name__)
        yield
