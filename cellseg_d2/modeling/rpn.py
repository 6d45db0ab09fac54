"""The RPN (Ren et al., NeurIPS 2015), whose cost does not grow with cells times anchors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances, pairwise_iou


@PROPOSAL_GENERATOR_REGISTRY.register()
class CellRPN(RPN):
    """``RPN`` that compares cells with the anchors around them only.

    Upstream's matrix of all cells and anchors takes 1 GB, and most of a training step on a CPU, at
    1,000 cells in 500x500 pixels. Parameters, labels and random numbers are upstream's, to the bit.
    """

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Label the anchors of each image; see ``RPN.label_and_sample_anchors``.

        Args:
            anchors: of each feature map, N in all.
            gt_instances: of each image; ``gt_boxes``.

        Returns:
            For each image (N,) int8 labels, 1 for cells, 0 for background and -1 for those left
            out, and the (N, 4) boxes of the matched cells, of which those labelled 1 count.
        """
        # Other generators need not place anchors on a grid.
        if type(self.anchor_generator) is not DefaultAnchorGenerator:
            return super().label_and_sample_anchors(anchors, gt_instances)
        grids = anchor_grids(anchors, self.anchor_generator.num_anchors)
        everywhere = Boxes.cat(anchors)
        labels, boxes = [], []
        for item in gt_instances:
            gt_boxes = item.gt_boxes.tensor
            matches, found = match_anchors(gt_boxes, grids, everywhere.tensor, self.anchor_matcher)
            if self.anchor_boundary_thresh >= 0:
                inside = everywhere.inside_box(item.image_size, self.anchor_boundary_thresh)
                found[~inside] = -1
            labels.append(self._subsample_labels(found))
            boxes.append(gt_boxes[matches] if len(item) else torch.zeros_like(everywhere.tensor))
        return labels, boxes


class AnchorGrid(NamedTuple):
    """Anchors of one feature map: A shapes at each position of a grid, row by row.

    Attributes:
        x0, x1: (A, W) left and right sides by column, ascending.
        y0, y1: (A, H) upper and lower sides by row, ascending.
    """

    x0: torch.Tensor
    x1: torch.Tensor
    y0: torch.Tensor
    y1: torch.Tensor


def anchor_grids(anchors: Sequence[Boxes], num_shapes: Sequence[int]) -> list[AnchorGrid]:
    """Find the grids in what ``DefaultAnchorGenerator`` made.

    Args:
        anchors: of each feature map.
        num_shapes: anchors a position, of each feature map.
    """
    levels = [
        level.tensor.view(-1, shapes, 4) for level, shapes in zip(anchors, num_shapes, strict=True)
    ]
    first_rows = torch.stack([(level[:, 0, 1] == level[0, 0, 1]).sum() for level in levels])
    grids = []
    for level, width in zip(levels, first_rows.tolist(), strict=True):
        row, column = level[:width], level[::width]
        sides = (row[..., 0], row[..., 2], column[..., 1], column[..., 3])
        grids.append(AnchorGrid(*(side.t().contiguous() for side in sides)))
    return grids


def match_anchors(
    boxes: torch.Tensor, grids: Sequence[AnchorGrid], anchors: torch.Tensor, matcher: Matcher
) -> tuple[torch.Tensor, torch.Tensor]:
    """Match each anchor with the box that it overlaps most, as ``matcher`` does.

    100 times as fast as that for 1,000 cells in 512x512 pixels, in 30 MB in place of 1 GB
    (``tools/benchmark.py``).

    Args:
        boxes: (G, 4) XYXY in pixels.
        grids: of each feature map.
        anchors: (N, 4) of all feature maps.
        matcher: its thresholds, labels and rule for boxes that no anchor overlaps well.

    Returns:
        What ``matcher(pairwise_iou(boxes, anchors))`` returns, to the bit: (N,) int64 indices of
        boxes, of equal overlaps the first, and (N,) int8 labels.
    """
    if not len(boxes):
        return matcher(pairwise_iou(Boxes(boxes), Boxes(anchors)))
    box, anchor = overlapping_pairs(boxes, grids)
    overlap = _iou(boxes[box], anchors[anchor])
    best = overlap.new_zeros(len(anchors)).scatter_reduce_(0, anchor, overlap, "amax")
    highest = overlap.new_zeros(len(boxes)).scatter_reduce_(0, box, overlap, "amax")
    if matcher.allow_low_quality_matches and (highest == 0).any():
        # Upstream's rule then takes every anchor that such a box does not overlap.
        return matcher(pairwise_iou(Boxes(boxes), Boxes(anchors)))
    # Of the boxes that overlap an anchor most, the first one.
    candidates = torch.where(overlap == best[anchor], box, len(boxes))
    matches = torch.full_like(best, len(boxes), dtype=torch.int64)
    matches.scatter_reduce_(0, anchor, candidates, "amin")
    matches[best == 0] = 0
    labels = torch.ones_like(matches, dtype=torch.int8)
    bounds = zip(matcher.labels, matcher.thresholds[:-1], matcher.thresholds[1:], strict=True)
    for label, low, high in bounds:
        labels[(best >= low) & (best < high)] = label
    if matcher.allow_low_quality_matches:
        is_highest = (overlap == highest[box]).int()
        chosen = torch.zeros_like(matches, dtype=torch.int32)
        labels[chosen.scatter_reduce_(0, anchor, is_highest, "amax") > 0] = 1
    return matches, labels


def overlapping_pairs(
    boxes: torch.Tensor, grids: Sequence[AnchorGrid]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the anchors that each box shares an area with.

    Args:
        boxes: (G, 4) XYXY in pixels, at least one.
        grids: of each feature map.

    Returns:
        (P,) int64 boxes and (P,) int64 anchors, counted through all feature maps.
    """
    x0, y0, x1, y1 = boxes.t()
    windows = []
    offset = 0
    for grid in grids:
        num_shapes, width = grid.x0.shape
        # The anchors of one shape that a box meets are a window of the grid.
        left, columns = _window(grid.x0, grid.x1, x0, x1)
        top, rows = _window(grid.y0, grid.y1, y0, y1)
        shape = torch.arange(num_shapes, device=boxes.device)[:, None]
        first = offset + (top * width + left) * num_shapes + shape
        to_next_row = (width - columns) * num_shapes
        each = (rows * columns, first, columns, to_next_row, torch.full_like(first, num_shapes))
        windows.append(torch.stack(each, dim=2).flatten(0, 1))
        offset += num_shapes * width * grid.y0.shape[1]
    table = torch.cat(windows)
    counts = table[:, 0]
    window = torch.repeat_interleave(counts)
    _, first, columns, to_next_row, shapes = table[window].unbind(dim=1)
    place = torch.arange(len(window), device=boxes.device) - (counts.cumsum(0) - counts)[window]
    row = place.div(columns, rounding_mode="floor")
    return window % len(boxes), first + place * shapes + row * to_next_row


def _window(
    low: torch.Tensor, high: torch.Tensor, begin: torch.Tensor, end: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of intervals (A, L) in ascending order, those that share a length with G others.

    Returns:
        (A, G) int64, the first of them and how many they are.
    """
    shape = len(low), len(begin)
    first = torch.searchsorted(high, begin.expand(shape).contiguous(), right=True)
    last = torch.searchsorted(low, end.expand(shape).contiguous())
    return first, (last - first).clamp(min=0)


def _iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """IoU of (P, 4) boxes, one by one, in ``pairwise_iou``'s order of arithmetic."""
    sides = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    shared = sides[:, 0] * sides[:, 1]
    return shared / (Boxes(a).area() + Boxes(b).area() - shared)
