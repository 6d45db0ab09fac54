"""Weights: loaded safely, checked against the model, written whole, converted from elsewhere."""

from .checkpointer import CellCheckpointer
from .sources import check_weights
from .unpickler import load_arrays

__all__ = ["CellCheckpointer", "check_weights", "load_arrays"]
