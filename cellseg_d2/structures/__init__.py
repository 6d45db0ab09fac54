"""Instances without bitmaps: label maps on the way in, run lengths on the way out."""

from .label_map_runs import LabelMapInstances, encode_label_map
from .label_masks import LabelMasks
from .rle import RLEMasks, encode_roi_masks

__all__ = ["LabelMapInstances", "LabelMasks", "RLEMasks", "encode_label_map", "encode_roi_masks"]
