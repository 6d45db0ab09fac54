"""What a training's hooks cost of an iteration: the small config, with the weights averaged."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from cellseg_d2 import load_config
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset
from cellseg_d2.engine import CellTrainer, register_datasets

from .timing import Comparison

CONFIG = Path(__file__).parents[2] / "configs" / "mask_rcnn_R_18_FPN_small.yaml"
WARM_UP, ITERATIONS = 5, 40
"""Iterations before the clock starts, and after: two rows of metrics are written in them."""


class TimedTrainer(CellTrainer):
    """Adds up the seconds of its steps, and of all hooks around them."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self.step_seconds = self.hook_seconds = 0.0

    def run_step(self) -> None:
        """Run one iteration."""
        self.step_seconds += self._timed(super().run_step)

    def before_step(self) -> None:
        """Run the hooks."""
        self.hook_seconds += self._timed(super().before_step)

    def after_step(self) -> None:
        """Run the hooks."""
        self.hook_seconds += self._timed(super().after_step)

    def _timed(self, function: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        function()
        seconds = time.perf_counter() - begin
        return seconds if WARM_UP <= self.iter < WARM_UP + ITERATIONS else 0.0


def run() -> Iterator[Comparison]:
    """Yield the hooks' share: timers, schedule, average, metrics, progress.

    Evaluations and checkpoints, which are as frequent as a config says, are not part of it.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "data", SyntheticParameters(train=8, test=0))
        options = ["DATASETS.CELL.ROOT", f"{folder}/data", "OUTPUT_DIR", f"{folder}/run"]
        cfg = load_config(CONFIG, [*options, "SOLVER.EMA.ENABLED", True, "DATASETS.TEST", ()])
        # The last one, which is saved, is not timed.
        cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = WARM_UP + ITERATIONS + 1, 0
        Path(cfg.OUTPUT_DIR).mkdir()
        register_datasets(cfg)
        trainer = TimedTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    yield Comparison(
        "hooks with average of weights, small config",
        "the step",
        trainer.step_seconds / ITERATIONS,
        trainer.hook_seconds / ITERATIONS,
        goal=0.03,
        at_most=True,
    )
