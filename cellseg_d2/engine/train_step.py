"""One training iteration: data, losses, gradients, clipping, update; with or without AMP."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from detectron2.engine import SimpleTrainer, TrainerBase
from detectron2.utils.events import get_event_storage

logger = logging.getLogger(__name__)


class TrainStep(TrainerBase):
    """What ``CellTrainer`` runs each iteration.

    It differs from upstream's ``SimpleTrainer`` and ``AMPTrainer`` in this: the loader is started
    at the first step, when the position to start from is known; the total gradient norm can be
    clipped, on unscaled gradients; the model's random numbers depend only on (seed, iteration,
    rank), so that a resumed run draws what an uninterrupted one would.

    Args:
        model: answers a batch with a dict of losses.
        data_loader: iterable of batches.
        optimizer: over the model's parameters.
        amp: whether to compute in mixed precision; needs CUDA.
        max_norm: total norm to clip the gradients to; 0 for none.
        norm_type: p of the norm.
        seed, rank: of the model's random numbers.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        amp: bool = False,
        max_norm: float = 0.0,
        norm_type: float = 2.0,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.amp = amp
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.seed = seed
        self.rank = rank
        self.scaler = torch.amp.GradScaler("cuda", enabled=amp)
        self._batches: Any = None
        model.train()

    def run_step(self) -> None:
        """Run iteration ``self.iter``.

        Raises:
            FloatingPointError: where a loss is not finite.
        """
        if self._batches is None:
            self._batches = iter(self.data_loader)
        start = time.perf_counter()
        data = next(self._batches)
        data_time = time.perf_counter() - start

        torch.manual_seed(mix_seed(self.seed, self.iter, self.rank))
        with torch.autocast("cuda", enabled=self.amp):
            losses = self.model(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        SimpleTrainer.write_metrics(losses, data_time)
        if self.max_norm > 0:
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self.max_norm, self.norm_type
            )
            get_event_storage().put_scalar("grad_norm", norm.item(), smoothing_hint=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, but for the model."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if state_dict["scaler"] and self.amp:
            self.scaler.load_state_dict(state_dict["scaler"])


def mix_seed(*words: int) -> int:
    """Return one 32-bit seed that depends on all ``words`` (non-negative integers)."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def use_amp(enabled: bool, device: str) -> bool:
    """Say whether to compute in mixed precision: only where it was asked for, and on CUDA."""
    if enabled and not device.startswith("cuda"):
        logger.warning("SOLVER.AMP.ENABLED needs CUDA; on %s it is off", device)
        return False
    return enabled
