"""Scores of predictions against ground truth."""

from .coco import CellEvaluator, coco_scores
from .score_file import write_scores
from .tables import score_table

__all__ = ["CellEvaluator", "coco_scores", "score_table", "write_scores"]
