"""Trained models at work."""

from .inputs import find_images
from .predictor import CellPredictor

__all__ = ["CellPredictor", "find_images"]
