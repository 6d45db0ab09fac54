"""Scores of predictions against ground truth."""

from .coco import coco_scores
from .evaluator import CellEvaluator
from .panoptic import panoptic_quality
from .score_file import write_scores
from .tables import score_table

__all__ = ["CellEvaluator", "coco_scores", "panoptic_quality", "score_table", "write_scores"]
