"""Parts of the detector against Detectron2's and torchvision's: RoIAlign, anchors, PointRend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.projects.point_rend import PointRendMaskHead
from detectron2.structures import Boxes, Instances, pairwise_iou
from torchvision.ops import roi_align

from cellseg_d2 import load_config
from cellseg_d2.modeling import CellPointRendMaskHead
from cellseg_d2.modeling.roi_align import roi_align_pyramid
from cellseg_d2.modeling.rpn import anchor_grids, match_anchors

from .timing import Comparison, median_seconds, peak_memory

CONFIGS = Path(__file__).parents[2] / "configs"
IMAGES, CHANNELS, SIDE, STRIDE, ROIS = 4, 64, 56, 4, 512
REFINED = 1000
STRIDES = [4, 8, 16, 32, 64]


def run() -> Iterator[Comparison]:
    """Yield each comparison as it is made."""
    for bins in (7, 14):
        yield from pooling(bins)
    for cells in (50, 300, 1000):
        yield matching(cells)
    for steps in (2, 3):
        yield refining(steps)


def pooling(bins: int) -> Iterator[Comparison]:
    """512 RoIs of 12 to 42 pixels on 4x64x56x56 features, and the gradient; equal to 1e-4."""
    features, rois = _features_and_rois()
    levels = torch.zeros(ROIS, dtype=torch.int64)

    def ours() -> torch.Tensor:
        return roi_align_pyramid([features], [1 / STRIDE], rois, levels, (bins, bins))

    def theirs() -> torch.Tensor:
        return roi_align(features, rois, bins, 1 / STRIDE, 0, aligned=True)

    upstream = torch.randn(ROIS, CHANNELS, bins, bins, generator=torch.Generator().manual_seed(1))

    def gradient(pooled: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: torch.autograd.grad(pooled, features, upstream, retain_graph=True)[0]

    yield _compare(f"RoIAlign, {bins}x{bins}", "torchvision", theirs, ours, goal=1)
    yield _compare(
        f"gradient of RoIAlign, {bins}x{bins}",
        "torchvision",
        gradient(theirs()),
        gradient(ours()),
        goal=3,
    )


def matching(cells: int) -> Comparison:
    """Cells of 12 to 28 pixels with the 65,000 anchors of 512x512 pixels; equal to the bit."""
    sizes = [[8], [16], [32], [64], [128]]
    generator = DefaultAnchorGenerator(sizes=sizes, aspect_ratios=[[0.5, 1, 2]], strides=STRIDES)
    anchors = generator([torch.zeros(1, 1, 512 // s, 512 // s) for s in STRIDES])
    everywhere = Boxes.cat(anchors)
    draw = torch.Generator().manual_seed(0)
    center = 512 * torch.rand(cells, 2, generator=draw)
    half = 6 + 8 * torch.rand(cells, 2, generator=draw)
    boxes = torch.cat([center - half, center + half], dim=1).clamp(0, 512)
    matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)

    def ours() -> Any:
        grids = anchor_grids(anchors, generator.num_anchors)
        return match_anchors(boxes, grids, everywhere.tensor, matcher)

    def theirs() -> Any:
        return matcher(pairwise_iou(Boxes(boxes), everywhere))

    # Upstream's grows with the cells; a few cells leave what each anchor costs.
    goal = 3 if cells < 100 else 20
    return _compare(f"anchors of {cells} cells", "Detectron2", theirs, ours, goal, tolerance=0)


def refining(steps: int) -> Comparison:
    """The masks of 1,000 cells of four classes on 64x128x128 features; equal to 1e-5.

    But for one pixel in 100,000.
    """
    cfg = load_config(CONFIGS / "cellseg_best.yaml", ["MODEL.POINT_HEAD.SUBDIVISION_STEPS", steps])
    shapes = {"p2": ShapeSpec(channels=CHANNELS, stride=STRIDE)}
    head, reference = CellPointRendMaskHead(cfg, shapes).eval(), PointRendMaskHead(cfg, shapes)
    draw = torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        # Fresh predictors answer next to nothing.
        torch.nn.init.normal_(parameter, std=0.1, generator=draw)
    reference.eval().load_state_dict(head.state_dict())
    features = {"p2": torch.randn(1, CHANNELS, 128, 128, generator=draw)}
    center = 512 * torch.rand(REFINED, 2, generator=draw)
    half = 6 + 15 * torch.rand(REFINED, 2, generator=draw)
    boxes = Boxes(torch.cat([center - half, center + half], dim=1).clamp(0, 512))
    classes = torch.randint(0, cfg.MODEL.ROI_HEADS.NUM_CLASSES, (REFINED,), generator=draw)

    @torch.no_grad()
    def masks(of: PointRendMaskHead) -> torch.Tensor:
        found = of(features, [Instances((512, 512), pred_boxes=boxes, pred_classes=classes)])
        return found[0].pred_masks

    our_memory = peak_memory(lambda: masks(head))
    reference_memory = peak_memory(lambda: masks(reference))
    expected, reference_seconds = median_seconds(lambda: masks(reference), 3)
    found, our_seconds = median_seconds(lambda: masks(head), 7)
    # Which of two points comes last among the least sure can depend on a last bit.
    differs = (found - expected).abs() > 1e-5
    if differs.float().mean() > 1e-5:
        raise AssertionError(f"PointRend: {differs.sum()} of {differs.numel()} pixels differ")
    return Comparison(
        f"PointRend's {found.shape[-1]}x{found.shape[-1]} masks of {REFINED:,} cells",
        "Detectron2",
        reference_seconds,
        our_seconds,
        goal=2,
        reference_memory=reference_memory,
        our_memory=our_memory,
    )


def _compare(
    name: str,
    reference: str,
    theirs: Callable[[], Any],
    ours: Callable[[], Any],
    goal: float,
    tolerance: float = 1e-4,
) -> Comparison:
    expected, reference_seconds = median_seconds(theirs, 3)
    found, our_seconds = median_seconds(ours, 15)
    pairs = (
        [(found, expected)]
        if isinstance(found, torch.Tensor)
        else zip(found, expected, strict=True)
    )
    for one, other in pairs:
        if not np.allclose(one.detach(), other.detach(), rtol=tolerance, atol=tolerance):
            raise AssertionError(f"{name}: results differ")
    return Comparison(name, reference, reference_seconds, our_seconds, goal)


def _features_and_rois() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    side = SIDE * STRIDE
    features = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, generator=draw).requires_grad_()
    center = torch.rand(ROIS, 2, generator=draw) * side
    extent = 12 + 30 * torch.rand(ROIS, 2, generator=draw)
    image = torch.randint(0, IMAGES, (ROIS, 1), generator=draw).float()
    corners = torch.cat([center - extent / 2, center + extent / 2], dim=1).clamp(0, side)
    return features, torch.cat([image, corners], dim=1)
