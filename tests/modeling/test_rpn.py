"""Oracle: Detectron2's own matcher on the full matrix, and its RPN with the same random numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances, pairwise_iou

from cellseg_d2 import load_config
from cellseg_d2.modeling.rpn import CellRPN, anchor_grids, match_anchors, overlapping_pairs

STRIDES = [4, 8, 16, 32, 64]
SIZE = (97, 130)


def anchor_generator(**changes) -> DefaultAnchorGenerator:
    settings = {"sizes": [[8], [16], [32], [64], [128]], "aspect_ratios": [[0.5, 1, 2]]} | changes
    return DefaultAnchorGenerator(strides=STRIDES, **settings)


def feature_maps() -> list[torch.Tensor]:
    return [torch.zeros(1, 1, -(-SIZE[0] // s), -(-SIZE[1] // s)) for s in STRIDES]


def cells(count: int, seed: int = 0) -> torch.Tensor:
    """Boxes of whole pixels, from one pixel to a quarter of the image, some at its border."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor(SIZE[::-1])
    half = 1 + 12 * torch.rand(count, 2, generator=generator) ** 3
    boxes = torch.cat([centre - half, centre + half], dim=1).round()
    boxes = boxes.clamp(min=0).minimum(torch.tensor([SIZE[1], SIZE[0]] * 2))
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)]


def matcher(low_quality: bool = True) -> Matcher:
    return Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=low_quality)


def check(boxes: torch.Tensor, chosen: Matcher, generator: DefaultAnchorGenerator) -> None:
    anchors = generator(feature_maps())
    grids, everywhere = anchor_grids(anchors, generator.num_anchors), Boxes.cat(anchors)
    expected = chosen(pairwise_iou(Boxes(boxes), everywhere))
    found = match_anchors(boxes, grids, everywhere.tensor, chosen)
    for one, wanted in zip(found, expected, strict=True):
        assert one.dtype == wanted.dtype
        assert torch.equal(one, wanted)


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("count", [1, 5, 60, 300])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_matches_are_those_of_the_full_matrix(count: int, seed: int, low_quality: bool) -> None:
    boxes = cells(count, seed)
    check(boxes, matcher(low_quality), anchor_generator())
    # Equal boxes and equal overlaps: the first one wins.
    check(torch.cat([boxes, boxes]), matcher(low_quality), anchor_generator())
    moved = boxes + 0.37 * torch.rand(boxes.shape, generator=torch.Generator().manual_seed(seed))
    check(moved, matcher(low_quality), anchor_generator())


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": [[4, 8], [8, 16], [16, 32], [32, 64], [64, 128]]},
        {"aspect_ratios": [[1.0]]},
        {"offset": 0.5},
        {"sizes": [[300], [300], [300], [300], [300]]},
    ],
    ids=["two sizes a level", "one shape", "shifted by half a stride", "larger than the image"],
)
def test_anchors_of_other_shapes(changes: dict) -> None:
    check(cells(80), matcher(), anchor_generator(**changes))


@pytest.mark.parametrize(
    "box",
    [
        (500.0, 500.0, 510.0, 510.0),
        (20.0, 20.0, 20.0, 30.0),
        (0.0, 0.0, 130.0, 97.0),
        (-40.0, -40.0, 400.0, 400.0),
    ],
    ids=["beyond all anchors", "without area", "the whole image", "larger than the image"],
)
def test_odd_boxes(box: tuple[float, ...]) -> None:
    check(torch.tensor([box]), matcher(), anchor_generator())
    check(torch.cat([cells(20), torch.tensor([box])]), matcher(), anchor_generator())


def test_without_boxes() -> None:
    check(torch.zeros(0, 4), matcher(), anchor_generator())


def test_pairs_are_those_with_an_overlap() -> None:
    generator = anchor_generator()
    anchors, boxes = generator(feature_maps()), cells(60)
    box, anchor = overlapping_pairs(boxes, anchor_grids(anchors, generator.num_anchors))
    expected = torch.nonzero(pairwise_iou(Boxes(boxes), Boxes.cat(anchors)) > 0)
    found = torch.stack([box, anchor], dim=1)
    assert sorted(found.tolist()) == expected.tolist()
    assert len(found) < 0.1 * len(boxes) * len(Boxes.cat(anchors))


@pytest.mark.parametrize("boundary", [-1, 0])
def test_labels_and_boxes_are_upstreams(boundary: int) -> None:
    images = [
        Instances(SIZE, gt_boxes=Boxes(boxes)) for boxes in (cells(40), torch.zeros(0, 4), cells(3))
    ]
    found = []
    for kind in (RPN, CellRPN):
        rpn = kind(
            in_features=["p2"],
            head=torch.nn.Identity(),
            anchor_generator=anchor_generator(),
            anchor_matcher=matcher(),
            box2box_transform=None,
            batch_size_per_image=64,
            positive_fraction=0.5,
            pre_nms_topk=(10, 10),
            post_nms_topk=(10, 10),
            anchor_boundary_thresh=boundary,
        )
        torch.manual_seed(3)
        anchors = rpn.anchor_generator(feature_maps())
        found.append(rpn.label_and_sample_anchors(anchors, images))
    for upstreams, ours in zip(*found, strict=True):
        for a, b in zip(upstreams, ours, strict=True):
            assert torch.equal(a, b)
    assert (found[1][0][0] == 1).any()


def test_models_have_it(repository: Path) -> None:
    cfg = load_config(repository / "configs/report2_R_50_FPN_dice.yaml", ["MODEL.WEIGHTS", ""])
    cfg.MODEL.DEVICE = "meta"
    assert type(build_model(cfg).proposal_generator) is CellRPN
