"""``curves.png``, drawn anew after each evaluation; and the hooks that report on a run."""

from __future__ import annotations

import logging
import re
from os import PathLike
from pathlib import Path

from detectron2.engine import HookBase, hooks

from ..visualization.curves import plot_metrics
from .progress import ProgressWriter

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
CURVES_FILE = "curves.png"

_EVALUATED = re.compile(r"(?:.*/)?(?:bbox|segm|panoptic)/.+|val/.+")
# What drawing may stop with. Not OSError: a full disk would next cost a checkpoint.
_DRAWING_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class CurveHook(HookBase):
    """Draws the run's curves after each evaluation and at the end.

    A picture that cannot be drawn is logged with its traceback, and the training goes on: the
    numbers are in the metrics, and ``tools/plot_metrics.py`` draws them again. A file that cannot
    be written stops the run.

    Args:
        metrics: path of the run's ``metrics.json``. This hook has to come after those that evaluate
            and the one that writes it.
        picture: path of the PNG.
    """

    def __init__(self, metrics: str | PathLike[str], picture: str | PathLike[str]) -> None:
        self.metrics = Path(metrics)
        self.picture = Path(picture)

    def after_step(self) -> None:
        """Draw where this iteration was evaluated."""
        now = self.trainer.iter
        latest = self.trainer.storage.latest()
        if any(when == now and _EVALUATED.fullmatch(name) for name, (_, when) in latest.items()):
            self._draw()

    def after_train(self) -> None:
        """Draw all there is, also where the run did not end well."""
        self._draw()

    def _draw(self) -> None:
        # The writer opens the file before there is a row.
        if not self.metrics.is_file() or not self.metrics.stat().st_size:
            return
        try:
            plot_metrics({self.metrics.parent.name: self.metrics}, self.picture)
        except _DRAWING_ERRORS:
            logger.exception("%s could not be drawn; the training goes on", self.picture)


def report_hooks(
    folder: str | PathLike[str], max_iter: int, images_per_iteration: int
) -> list[HookBase]:
    """Return the hooks that report on a run, to come after all others; for the main process.

    Args:
        folder: ``OUTPUT_DIR``.
        max_iter: iterations of the whole training.
        images_per_iteration: over all processes.

    Returns:
        Progress every iteration, and ``curves.png`` after each evaluation.
    """
    folder = Path(folder)
    progress = ProgressWriter(max_iter, images_per_iteration)
    return [
        hooks.PeriodicWriter([progress], period=1),
        CurveHook(folder / METRICS_FILE, folder / CURVES_FILE),
    ]
