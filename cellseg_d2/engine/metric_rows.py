"""The rows of ``metrics.json``, those of a resumed run equal to those of an uninterrupted one."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from ..checkpoint.files import replace_file

logger = logging.getLogger(__name__)

WINDOW = 20
"""Iterations between two rows, and those that its medians are taken over."""


def is_due(iteration: int, period: int) -> bool:
    """Say whether an iteration (from 0) ends a period; a period of 0 never ends."""
    return period > 0 and (iteration + 1) % period == 0


class MetricRows(HookBase):
    """Has the writers write, so that a resumed run goes on where its checkpoint was.

    They write every ``WINDOW`` iterations, and after those that are evaluated or saved. Rows hold
    medians over the last iterations: their values go into the checkpoint. On resuming, rows of
    iterations that come again are cut off; then the trainer's ``build_writers`` is called.

    Args:
        path: of ``metrics.json``.
        periods: in iterations, those of evaluations and checkpoints; 0 for the last one only.
    """

    def __init__(self, path: str | PathLike[str], periods: Sequence[int]) -> None:
        self.path = Path(path)
        self.periods = (WINDOW, *periods)
        self._writers: list[EventWriter] = []
        self._restored: dict[str, Any] = {}

    def before_train(self) -> None:
        """Cut off what is to come again, restore the last values, and open the writers."""
        storage = self.trainer.storage
        for name, (values, smooth) in self._restored.items():
            # Not through put_scalar: what a writer finds there is new to it, and these are not.
            for value, iteration in values:
                storage.histories()[name].update(value, iteration)
            storage.smoothing_hints()[name] = smooth
        if comm.is_main_process():
            if self.trainer.resumed:
                cut_rows(self.path, self.trainer.start_iter)
            self._writers = self.trainer.build_writers()

    def after_step(self) -> None:
        """Write where it is due."""
        iteration = self.trainer.iter
        if iteration == self.trainer.max_iter - 1 or any(
            is_due(iteration, p) for p in self.periods
        ):
            self._write()

    def after_train(self) -> None:
        """Write the rest and close the writers."""
        self._write()
        for writer in self._writers:
            writer.close()

    def _write(self) -> None:
        for writer in self._writers:
            writer.write()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: for each smoothed metric its last (value, iteration)."""
        storage = getattr(self.trainer, "storage", None)
        if storage is None:  # not training yet
            return self._restored
        return {
            name: (storage.histories()[name].values()[-WINDOW:], smooth)
            for name, smooth in storage.smoothing_hints().items()
            if smooth
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave, once there is a storage to put it into."""
        self._restored = state_dict


def cut_rows(path: str | PathLike[str], start: int) -> None:
    """Keep of a ``metrics.json`` the rows of iterations before ``start``, and whole ones only.

    Args:
        path: replaced; nothing is done where there is none.
        start: first iteration that is to come.
    """
    path = Path(path)
    if not path.is_file():
        return
    rows = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [row for row in rows if _iteration_of(row) < start]
    if len(kept) < len(rows):
        logger.info("%s: cut off %d row(s) that come again", path, len(rows) - len(kept))
        with replace_file(path) as file:
            file.write("".join(kept).encode())


def _iteration_of(row: str) -> float:
    """Return a row's iteration, infinity where the row is cut off."""
    try:
        return float(json.loads(row)["iteration"]) if row.endswith("\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")
