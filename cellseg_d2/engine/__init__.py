"""Training: solver, step, trainer and set-up of a run."""

from .setup import register_datasets
from .trainer import CellTrainer

__all__ = ["CellTrainer", "register_datasets"]
