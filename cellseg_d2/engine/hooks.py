"""Evaluation, metrics and checkpoints of a training that may be killed at any moment.

A checkpoint is where a run goes on from. All that belongs to an iteration is therefore done before
its checkpoint is written, and comes out the same when it has to be done again. The order is

1. the step, the learning rate, the average of the weights: in memory;
2. ``Evaluation``: scores, best model (``model_best.pth``), patience;
3. ``MetricRows``: rows of ``metrics.json``;
4. ``Checkpoints``: ``model_ema.pth``, ``model_<iteration>.pth``, ``last_checkpoint``, the removal
   of old checkpoints, and in the last iteration ``model_final.pth``, ``last_checkpoint`` again.

Each file is whole or as it was before (``replace_file``). A run that is killed

- up to 2 goes on from the last checkpoint, as if it had not got further;
- between the best model and the checkpoint finds ``model_best.pth`` ahead of what the checkpoint
  remembers. It comes to the same score again, which again beats the remembered one, and writes the
  same file again;
- between the metrics and the checkpoint has rows of iterations that come again: they are cut off
  when it is resumed. The rows up to a checkpoint are always there, written before it;
- between a checkpoint and ``last_checkpoint`` goes on from the one before, and writes it again;
- before old checkpoints are removed has them in its list, and removes them when it is resumed;
- between the last checkpoint and ``model_final.pth`` has nothing left to train, and writes that.

An evaluation that fails is no kill: its iteration is saved all the same, noted as not evaluated,
and a resumed run evaluates it first. The state of all of these hooks is in the checkpoint, and the
ranks of a job hold the same: rank 0's results are everyone's, so that all stop together. Only rank
0 writes.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint import CellCheckpointer
from ..checkpoint.files import remove_parts
from ..errors import ConfigError
from .best_model import BestModel, flatten
from .ema import WeightAverage
from .metric_rows import is_due
from .parallel import share_buffers

logger = logging.getLogger(__name__)

FINAL_MODEL, AVERAGED_MODEL = "model_final", "model_ema"
"""Names of the last checkpoint, and of the averaged weights of the newest one."""

Scores = tuple[OrderedDict[str, dict[str, float]], dict[str, float]]
"""Scores by task, and losses."""


class Evaluation(HookBase):
    """Evaluates every ``period`` iterations and in the last one, which the scores may bring about.

    It is the trainer that evaluates (``CellTrainer.evaluate``).

    Args:
        period: in iterations; 0 evaluates in the last one only.
        best: keeps the best model, and says when to stop.
    """

    def __init__(self, period: int, best: BestModel) -> None:
        self.period = period
        self.best = best
        self.results: OrderedDict[str, dict[str, float]] = OrderedDict()
        self.iteration = -1

    def after_step(self) -> None:
        """Evaluate where it is due and not done yet."""
        iteration, last = self.trainer.iter, self.trainer.max_iter - 1
        if iteration == self.iteration or not (is_due(iteration, self.period) or iteration == last):
            return
        share_buffers(self.trainer.model)
        evaluated = False
        try:
            scores: Scores = self.trainer.evaluate()
            evaluated = True
        finally:
            if not evaluated:
                self.trainer.checkpoints.save()
        self.results, losses = comm.all_gather(scores)[0]
        self.iteration = iteration
        self.trainer.storage.put_scalars(**flatten(self.results), **losses, smoothing_hint=False)
        self.best.update(self.results, iteration)
        if self.best.out_of_patience:
            logger.warning(
                "stopping at iteration %d: for %d evaluations, %s has not risen by more than %g",
                iteration,
                self.best.without_gain,
                self.best.metric,
                self.best.min_gain,
            )
            self.trainer.max_iter = iteration + 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        results = {
            task: {name: float(value) for name, value in scores.items()}
            for task, scores in self.results.items()
        }
        return {"iteration": self.iteration, "results": results, "best": self.best.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        self.iteration = state_dict["iteration"]
        self.results = OrderedDict(state_dict["results"])
        self.best.load_state_dict(state_dict["best"])


class Checkpoints(HookBase):
    """Saves every ``period`` iterations and in the last one; keeps the newest.

    Args:
        checkpointer: of the model and all else that a resumed run needs.
        period: in iterations; 0 saves in the last one only.
        keep: checkpoints that stay, of those this run wrote; 0 for all. ``model_best.pth`` and
            ``model_final.pth`` do not count.
        average: is saved beside; None for none.
    """

    def __init__(
        self,
        checkpointer: CellCheckpointer,
        period: int,
        keep: int = 0,
        average: WeightAverage | None = None,
    ) -> None:
        if keep < 0:
            raise ConfigError(f"SOLVER.KEEP_CHECKPOINTS is {keep}; at least 0")
        self.checkpointer = checkpointer
        self.period = period
        self.keep = keep
        self.average = average
        self._names: list[str] = []
        self._final = -1

    def before_train(self) -> None:
        """Remove what a killed run may have left: half of a file, and checkpoints too many."""
        if comm.is_main_process():
            remove_parts(self.checkpointer.save_dir)
        self._remove_old()

    def after_step(self) -> None:
        """Save where it is due and not done yet."""
        iteration = self.trainer.iter
        if is_due(iteration, self.period):
            self.save()
        if iteration == self.trainer.max_iter - 1 and self._final != iteration:
            self._final = iteration
            self._save(FINAL_MODEL)

    def save(self) -> None:
        """Save this iteration, if it is not saved yet, and remove what is too old."""
        name = f"model_{self.trainer.iter:07d}"
        if name in self._names:
            return
        # Noted first, for what is saved is to know itself.
        self._names.append(name)
        self._save(name)
        self._remove_old()

    def _remove_old(self) -> None:
        while self.keep and len(self._names) > self.keep:
            old = self._names.pop(0)
            if comm.is_main_process():
                Path(self.checkpointer.save_dir, f"{old}.pth").unlink(missing_ok=True)

    def _save(self, name: str) -> None:
        if self.average is not None:
            self.checkpointer.save_weights(
                AVERAGED_MODEL, self.average.weights(), iteration=self.trainer.iter
            )
        self.checkpointer.save(name, iteration=self.trainer.iter)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"names": list(self._names), "final": self._final}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        self._names = list(state_dict["names"])
        self._final = state_dict["final"]
