"""One training iteration: batches, losses, gradients, clipping, update; with or without AMP."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np
import torch
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError
from .fault_dump import (
    FORWARD,
    GRADIENT,
    LOSS,
    Fault,
    FaultDump,
    NonFiniteError,
    StreamBatch,
    describe_fault,
)
from .gradients import add_gradients, to_floats, unsynchronized

MAX_SKIPPED = 40
"""Updates in a row that float16 may skip. Each halves the loss scale, which starts at 2^16: after
so many it is no longer the scale that makes the gradients overflow."""


class TrainStep(TrainerBase):
    """What ``CellTrainer`` runs each iteration: one update, over one or several batches.

    It differs from upstream's ``SimpleTrainer`` and ``AMPTrainer`` in this: the loader is started
    at the first step, when the position to start from is known; gradients of ``accumulate`` batches
    are averaged, with the memory of one; the total gradient norm is logged and can be clipped, on
    unscaled gradients; the model's random numbers depend only on (seed, number of the batch, rank),
    so that a resumed run draws what an uninterrupted one would; what is not finite stops the run on
    every rank before the weights are touched, and leaves what reproduces it.

    Args:
        model: answers a batch with a dict of losses, each a scalar.
        data_loader: iterable of batches; iteration i takes those numbered from i·``accumulate``.
        optimizer: over the model's parameters.
        amp: what to compute in mixed precision in; None for full precision. Gradients of float16,
            which needs CUDA, are scaled, and updates in which they overflow are skipped.
        accumulate: batches of an iteration, at least 1. Where losses are means over a batch's
            images, the update is that of one batch ``accumulate`` times as large.
        max_norm: total norm to clip the gradients to; 0 for none.
        norm_type: p of the norm.
        seed, rank: of the model's random numbers.
        faults: writes down what is not finite; None to stop without.

    Raises:
        ConfigError: for ``accumulate`` below 1.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        amp: torch.dtype | None = None,
        accumulate: int = 1,
        max_norm: float = 0.0,
        norm_type: float = 2.0,
        seed: int = 0,
        rank: int = 0,
        faults: FaultDump | None = None,
    ) -> None:
        super().__init__()
        if accumulate < 1:
            raise ConfigError(f"SOLVER.ACCUMULATE is {accumulate}; expected at least 1")
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.amp = amp
        self.accumulate = accumulate
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.seed = seed
        self.rank = rank
        self.faults = faults
        self.scaler = torch.amp.GradScaler("cuda", enabled=amp == torch.float16)
        self._skipped = 0
        self._batches: Any = None
        model.train()

    def run_step(self) -> None:
        """Run iteration ``self.iter``.

        Raises:
            NonFiniteError: where a loss, or without a gradient scaler the gradient, is not finite;
                the weights are then those before the iteration.
        """
        if self._batches is None:
            self._batches = iter(self.data_loader)
        self.optimizer.zero_grad()
        batches: list[StreamBatch] = []
        losses: list[dict[str, torch.Tensor]] = []
        waited = 0.0
        for turn in range(self.accumulate):
            start = time.perf_counter()
            samples = next(self._batches)
            waited += time.perf_counter() - start
            batches.append(self._at(self.iter * self.accumulate + turn, samples))
            # Gradients travel between processes once an update.
            last = turn == self.accumulate - 1
            try:
                with contextlib.nullcontext() if last else unsynchronized(self.model):
                    losses.append(self._add_gradients(batches[-1]))
            except FloatingPointError as error:  # proposals that are not finite
                fault = Fault(self.iter, FORWARD, batches[-1:], [{}], str(error))
                raise NonFiniteError(self._dump(fault)) from error
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, self.norm_type)
        values, norm_value = to_floats(losses, norm)
        self._record(batches, values, norm_value, waited)
        if self.max_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.max_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, but for the model."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave, but for the optimizer's options.

        Weight decay, momentum, ``initial_lr`` and the like stay those of the config, which may ask
        for others than before.
        """
        groups = self.optimizer.param_groups
        options = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        self.optimizer.load_state_dict(state_dict["optimizer"])
        for group, own in zip(self.optimizer.param_groups, options, strict=True):
            group.update(own)
        if state_dict["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state_dict["scaler"])

    def _at(self, number: int, samples: Any) -> StreamBatch:
        ranks = comm.get_world_size()
        first = number * len(samples) * ranks + self.rank
        positions = tuple(range(first, first + len(samples) * ranks, ranks))
        return StreamBatch(number, mix_seed(self.seed, number, self.rank), positions, samples)

    def _add_gradients(self, batch: StreamBatch) -> dict[str, torch.Tensor]:
        return add_gradients(
            self.model,
            batch.samples,
            batch.seed,
            amp=self.amp,
            factor=1 / self.accumulate,
            scaler=self.scaler,
        )

    def _record(
        self,
        batches: list[StreamBatch],
        losses: list[dict[str, float]],
        norm: float,
        waited: float,
    ) -> None:
        """Stop for what is not finite on any rank; log the rest on the main one."""
        fault = self._find_fault(batches, losses, norm)
        means = {k: sum(each[k] for each in losses) / len(losses) for k in losses[0]}
        ranks = comm.all_gather((means, waited, fault.what if fault else ""))
        kinds = {kind for *_, kind in ranks if kind}
        if kinds:
            self._stop(fault, kinds)
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        means = {k: float(np.mean([each[k] for each, *_ in ranks])) for k in means}
        storage.put_scalar("data_time", max(seconds for _, seconds, _ in ranks))
        storage.put_scalar("total_loss", sum(means.values()))
        if len(means) > 1:
            storage.put_scalars(**means)
        if math.isfinite(norm):
            storage.put_scalar("grad_norm", norm)
        if self.scaler.is_enabled():
            storage.put_scalar("skipped_update", self._skipped > 0, smoothing_hint=False)

    def _find_fault(
        self, batches: list[StreamBatch], losses: list[dict[str, float]], norm: float
    ) -> Fault | None:
        bad = [k for k, each in enumerate(losses) if not math.isfinite(sum(each.values()))]
        if bad:
            chosen = [batches[k] for k in bad]
            return Fault(self.iter, LOSS, chosen, [losses[k] for k in bad])
        if math.isfinite(norm):
            self._skipped = 0
            return None
        self._skipped += 1
        if self.scaler.is_enabled() and self._skipped < MAX_SKIPPED:
            return None  # the scaler leaves this update out and lowers its scale
        return Fault(self.iter, GRADIENT, batches, losses, f"its norm is {norm}")

    def _stop(self, fault: Fault | None, kinds: set[str]) -> NoReturn:
        """Stop on every rank, with what all of them found."""
        # One rank's loss makes everyone's gradient what it is.
        if fault is not None and LOSS in kinds and fault.what != LOSS:
            fault = None
        reports = comm.all_gather(self._dump(fault) if fault else "")
        raise NonFiniteError("\n".join(report for report in reports if report))

    def _dump(self, fault: Fault) -> str:
        if self.faults is None:
            return describe_fault(fault)
        model = self.model
        if isinstance(model, DistributedDataParallel):
            model = model.module
        return self.faults.write(fault, model, self.amp)


def mix_seed(*words: int) -> int:
    """Return one 32-bit seed that depends on all ``words`` (non-negative integers)."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])
