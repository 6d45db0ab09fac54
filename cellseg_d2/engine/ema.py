"""An exponential moving average of the weights (Polyak and Juditsky 1992), kept while training."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from ..errors import ConfigError

logger = logging.getLogger(__name__)


class WeightAverage(HookBase):
    """Averages the trained parameters after each iteration.

    Iteration t (from 1) keeps min(``decay``, (1 + t) / (10 + t)) of the average, as TensorFlow's
    ``ExponentialMovingAverage`` does, so that the first weights are soon forgotten. Parameters that
    are not trained and buffers (BatchNorm's statistics) are the model's own.

    Args:
        model: whose weights are averaged; on its device already.
        decay: share that is kept in the long run, in [0, 1).
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"SOLVER.EMA.DECAY is {decay}; expected at least 0 and below 1")
        self.model = model
        self.decay = decay
        self.updates = 0
        self._parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
        self._average: dict[str, torch.Tensor] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, model: torch.nn.Module) -> WeightAverage | None:
        """Return what ``SOLVER.EMA`` asks for."""
        ema = cfg.SOLVER.EMA
        return cls(model, ema.DECAY) if ema.ENABLED else None

    def before_train(self) -> None:
        """Start from the model's weights, where no average was loaded."""
        if not self._average:
            self._average = {k: p.detach().clone() for k, p in self._parameters.items()}

    def after_step(self) -> None:
        """Move the average towards the weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        if not self._average:
            return
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self._average.values()), list(self._parameters.values()), 1 - decay
            )

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the averaged model's state; its tensors are not copies."""
        average = {id(p): self._average[name] for name, p in self._parameters.items()}
        # Not by name: a parameter that two modules share has two of them.
        state: dict[str, torch.Tensor] = self.model.state_dict(keep_vars=True)
        for name, value in state.items():
            state[name] = average.get(id(value), value.detach())
        return state

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights for a while, then its own again, to the bit."""
        own = [p.detach().clone() for p in self._parameters.values()]
        self._copy(list(self._average.values()))
        try:
            yield
        finally:
            self._copy(own)

    def _copy(self, weights: list[torch.Tensor]) -> None:
        # In place: the optimizer, DDP and compiled code hold on to the parameters themselves.
        if not weights:
            return
        with torch.no_grad():
            torch._foreach_copy_(list(self._parameters.values()), weights)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"updates": self.updates, "average": dict(self._average)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave.

        Raises:
            ConfigError: where other parameters are trained than were averaged.
        """
        average = state_dict["average"]
        if average.keys() != self._parameters.keys():
            differing = sorted(average.keys() ^ self._parameters.keys())
            raise ConfigError(
                f"the checkpoint's average is of other parameters than are trained now "
                f"({len(differing)} differ, {differing[0]} first): resume with the run's own "
                "config.yaml, or with SOLVER.EMA.ENABLED False"
            )
        self.updates = state_dict["updates"]
        self._average = {
            name: average[name].to(p.device, p.dtype, copy=True)
            for name, p in self._parameters.items()
        }
