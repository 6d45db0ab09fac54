"""Training: solver, step, trainer and set-up of a run."""

from .setup import normalize_by_dataset, register_datasets
from .trainer import CellTrainer

__all__ = ["CellTrainer", "normalize_by_dataset", "register_datasets"]
