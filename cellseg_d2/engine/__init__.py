"""Training: solver, step, trainer and set-up of a run."""

from .data_sets import check_evaluation_sets
from .setup import normalize_by_dataset, register_datasets
from .trainer import CellTrainer

__all__ = ["CellTrainer", "check_evaluation_sets", "normalize_by_dataset", "register_datasets"]
