"""A small model, its batches and a loop, for tests of the training step."""

from __future__ import annotations

import torch
from detectron2.utils.events import EventStorage

from cellseg_d2.engine.train_step import TrainStep


class Model(torch.nn.Module):
    """Two losses of a linear layer; notes the random number it draws."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 3)
        self.drawn: list[float] = []

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        self.drawn.append(torch.rand(()).item())
        out = self.linear(batch)
        return {"loss_a": (out**2).mean() * 50, "loss_b": out.abs().mean()}


def batches():
    return [torch.full((2, 4), float(i + 1)) for i in range(4)]


def run(step: TrainStep, iterations: range) -> EventStorage:
    with EventStorage(iterations.start) as storage:
        for step.iter in iterations:
            storage.iter = step.iter
            step.run_step()
    return storage
