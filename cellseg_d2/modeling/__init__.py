"""Models; importing this package registers them with Detectron2."""

from . import backbone
from .cell_rcnn import CellRCNN, rescale_to_rles
from .center_boundary_head import CenterBoundaryHead
from .mask_head import CellMaskHead
from .nms import SoftNMS, mask_nms, soft_nms
from .point_rend import CellPointRendMaskHead
from .rpn import CellRPN

__all__ = [
    "CellMaskHead",
    "CellPointRendMaskHead",
    "CellRCNN",
    "CellRPN",
    "CenterBoundaryHead",
    "SoftNMS",
    "backbone",
    "mask_nms",
    "rescale_to_rles",
    "soft_nms",
]
