"""The pooler against upstream's, in heads of every kind and in a whole step of training."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import nn

from cellseg_d2 import load_config
from cellseg_d2.data.dataset_mapper import build_instances
from cellseg_d2.modeling.pooler import CellROIPooler, replace_poolers

SCALES = [1 / 4, 1 / 8, 1 / 16]
SMALL = [
    *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32"),
]


def upstream(pooler_type: str = "ROIAlignV2", scales: list[float] = SCALES) -> ROIPooler:
    return ROIPooler(7, scales, 0, pooler_type, canonical_box_size=40, canonical_level=3)


def pyramid(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(64, 80), (32, 40), (16, 20)]
    return [torch.randn(2, 6, *size, generator=generator).to(dtype) for size in sizes]


def boxes(counts: tuple[int, int] = (30, 20)) -> list[Boxes]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 200
        made.append(Boxes(torch.cat([corner, corner + 100 * torch.rand(count, 2)], dim=1)))
    return made


@pytest.mark.parametrize("counts", [(30, 20), (0, 9), (0, 0)])
def test_equal_to_upstreams(counts: tuple[int, int]) -> None:
    plain = upstream()
    features, box_lists = pyramid(), boxes(counts)
    pooled = CellROIPooler(plain)(features, box_lists)
    torch.testing.assert_close(pooled, plain(features, box_lists), rtol=1e-5, atol=2e-6)


def test_equal_to_upstreams_on_one_level_and_without_images() -> None:
    plain = upstream(scales=[1 / 8])
    features, box_lists = pyramid()[1:2], boxes()
    pooler = CellROIPooler(plain)
    expected = plain(features, box_lists)
    torch.testing.assert_close(pooler(features, box_lists), expected, rtol=1e-5, atol=2e-6)
    assert pooler([features[0][:0]], []).shape == (0, 6, 7, 7)


@pytest.mark.parametrize("path", ["product", "torchvision"])
def test_boxes_keep_their_precision_in_bfloat16(path: str) -> None:
    """Features are rounded, boxes are not; upstream rounds both, and is off by far more."""
    plain = upstream()
    features, box_lists = pyramid(torch.bfloat16), boxes()
    pooler = CellROIPooler(plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if path == "product":
            pooled = pooler(features, box_lists)
        else:  # as on other devices
            pooled = ROIPooler.forward(pooler, features, box_lists)
        rounded = plain(features, box_lists)
    exact = plain([level.float() for level in features], box_lists)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), exact, rtol=2**-8, atol=1e-6)
    assert (rounded.float() - exact).abs().max() > 0.1


@pytest.mark.parametrize(
    ("config", "poolers"),
    [
        ("mask_rcnn_R_18_FPN_small", 2),
        ("cascade_X_101_FPN", 2),
        ("report4_R_50_C4", 1),
        ("pointrend_R_50_FPN", 1),
    ],
)
def test_every_kind_of_heads_gets_it(repository: Path, config: str, poolers: int) -> None:
    cfg = load_config(repository / f"configs/{config}.yaml", SMALL)
    cfg.MODEL.DEVICE = "meta"
    model = build_model(cfg)
    kinds = [type(m) for m in model.modules() if isinstance(m, ROIPooler)]
    assert kinds == [CellROIPooler] * poolers


def test_others_stay_as_they_are() -> None:
    heads = nn.ModuleDict({name: upstream(name) for name in ("ROIAlign", "ROIPool", "ROIAlignV2")})
    replace_poolers(heads)
    assert [type(child) is CellROIPooler for child in heads.values()] == [False, False, True]
    assert not heads.state_dict()


def small_model(repository: Path) -> nn.Module:
    cfg = load_config(repository / "configs/mask_rcnn_R_18_FPN_small.yaml", SMALL)
    torch.manual_seed(0)
    return build_model(cfg)


def sample() -> dict:
    labels = np.zeros((96, 128), np.int32)
    for number, (y, x, side) in enumerate([(5, 5, 18), (30, 60, 25), (60, 10, 12), (50, 90, 30)]):
        labels[y : y + side, x : x + side] = number + 1
    instances = build_instances([labels], [1], {1: np.arange(1, 5)}, (96, 128))
    image = torch.arange(3 * 96 * 128).reshape(3, 96, 128).remainder(251).to(torch.uint8)
    return {"image": image, "instances": instances, "height": 96, "width": 128}


def gradients(model: nn.Module, amp: bool = False) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        losses = model([sample(), sample()])
    sum(losses.values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_of_a_step_equal_those_with_upstreams_poolers(repository: Path) -> None:
    model = small_model(repository)
    ours = gradients(model)
    heads = model.roi_heads
    keys = set(model.state_dict())
    for name in ("box_pooler", "mask_pooler"):
        pooler = getattr(heads, name)
        plain = ROIPooler(pooler.output_size, pooler.scales, 0, "ROIAlignV2")
        setattr(heads, name, plain)
    assert set(model.state_dict()) == keys
    expected = gradients(model)
    assert set(ours) == set(expected)
    for name, gradient in ours.items():
        scale = expected[name].abs().max().item()
        assert (gradient - expected[name]).abs().max().item() <= 2e-5 * scale, name


@pytest.mark.parametrize("amp", [False, True])
def test_a_copy_of_the_model_gives_the_same_bits(repository: Path, amp: bool) -> None:
    model = small_model(repository)
    copied = copy.deepcopy(model)
    for (name, one), other in zip(
        gradients(model, amp).items(), gradients(copied, amp).values(), strict=True
    ):
        assert torch.equal(one, other), name
