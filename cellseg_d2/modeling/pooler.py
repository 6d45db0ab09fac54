"""The heads' RoI pooler: its boxes keep their precision, and on a CPU it is fast."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from torch import nn
from torchvision.ops import roi_align

from .roi_align import roi_align_pyramid


class CellROIPooler(ROIPooler):
    """``ROIPooler`` of RoIAlign, with two differences.

    Upstream rounds boxes to the features' dtype: in bfloat16 a coordinate above 256 would be one of
    every second pixel, which moves the mask of a cell. Here they stay as they are. And on a CPU
    all levels are pooled at once by ``roi_align_pyramid``.

    Args:
        plain: gives its settings to the new one; its level poolers are aligned ``ROIAlign``.
    """

    def __init__(self, plain: ROIPooler) -> None:
        levels: list[Any] = list(plain.level_poolers)
        self.scales: list[float] = [level.spatial_scale for level in levels]
        self.sampling_ratio: int = levels[0].sampling_ratio
        super().__init__(
            plain.output_size,
            self.scales,
            self.sampling_ratio,
            "ROIAlignV2",
            plain.canonical_box_size,
            plain.canonical_level,
        )
        self.level_poolers = nn.ModuleList(map(_FullPrecision, levels))

    def forward(self, x: list[torch.Tensor], box_lists: list[Boxes]) -> torch.Tensor:
        """Pool; see ``ROIPooler.forward``.

        Args:
            x: (B, C, H, W) of each level.
            box_lists: of each of the B images, K boxes in all.

        Returns:
            (K, C, P, Q) in the features' dtype.
        """
        if x[0].device.type != "cpu" or not box_lists:
            return super().forward(x, box_lists)
        rois = convert_boxes_to_pooler_format(box_lists)
        if len(x) == 1:
            levels = torch.zeros(len(rois), dtype=torch.int64)
        else:
            levels = assign_boxes_to_levels(
                box_lists,
                self.min_level,
                self.max_level,
                self.canonical_box_size,
                self.canonical_level,
            )
        return roi_align_pyramid(
            x, self.scales, rois, levels, self.output_size, self.sampling_ratio
        )


class _FullPrecision(ROIAlign):
    """``ROIAlign`` in float32 at least; the answer is of the features' dtype."""

    def __init__(self, plain: ROIAlign) -> None:
        super().__init__(plain.output_size, plain.spatial_scale, plain.sampling_ratio)

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool (B, C, H, W) features at (K, 5) RoIs, as upstream's does."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        pooled = roi_align(
            input.to(dtype),
            rois.to(dtype),
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.aligned,
        )
        return pooled.to(input.dtype)


def replace_poolers(roi_heads: nn.Module) -> None:
    """Give a model's heads a ``CellROIPooler`` for each ``ROIPooler`` that does the same.

    Works on what ``StandardROIHeads``, ``CascadeROIHeads``, ``Res5ROIHeads`` and PointRend's build.
    Poolers have no parameters: checkpoints stay as they are.

    Args:
        roi_heads: changed in place; poolers of another kind (``ROIPool``, RoIAlign that is not
            aligned, rotated boxes) stay.
    """
    for parent in list(roi_heads.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is ROIPooler and _is_aligned(child.level_poolers):
                setattr(parent, name, CellROIPooler(child))


def _is_aligned(levels: Any) -> bool:
    return all(type(level) is ROIAlign and level.aligned for level in levels)
