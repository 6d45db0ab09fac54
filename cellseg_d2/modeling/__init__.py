"""Models; importing this package registers them with Detectron2."""

from .cell_rcnn import CellRCNN, rescale_to_rles

__all__ = ["CellRCNN", "rescale_to_rles"]
