"""Oracle: Detectron2's ``BitMasks`` of the same instances, drawn one by one."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_d2.structures import LabelMasks, label_masks

BIG = 2**31 - 1


@pytest.fixture
def masks() -> LabelMasks:
    """Six instances: touching, overlapping over layers, in two parts, at the border, cut away."""
    maps = torch.zeros(2, 12, 16, dtype=torch.int32)
    maps[0, 2:5, 3:7] = 1
    maps[0, 5:9, 3:7] = 2  # touches 1
    maps[0, 0:2, 14:16] = maps[0, 10:12, 0:3] = BIG  # two parts, two corners
    maps[1, 4:8, 5:11] = 1  # the same id as in layer 0, and over it
    maps[1, :, 15] = 9
    return LabelMasks(maps, torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1, 2, BIG, 1, 9, 77]))


def bit_masks_of(masks: LabelMasks) -> BitMasks:
    return BitMasks(masks.label_maps[masks.layers] == masks.ids[:, None, None])


def assert_same(masks: LabelMasks, bit_masks: BitMasks) -> None:
    assert len(masks) == len(bit_masks)
    assert torch.equal(masks.to_bit_masks().tensor, bit_masks.tensor)
    assert torch.equal(masks.nonempty(), bit_masks.nonempty())
    assert torch.equal(masks.area(), bit_masks.tensor.flatten(1).sum(dim=1))
    boxes, expected = masks.get_bounding_boxes(), bit_masks.get_bounding_boxes()
    assert isinstance(boxes, Boxes)
    assert boxes.tensor.dtype == expected.tensor.dtype
    assert torch.equal(boxes.tensor, expected.tensor)


def test_is_as_bit_masks(masks):
    bit_masks = bit_masks_of(masks)
    assert_same(masks, bit_masks)
    assert masks.image_size == tuple(bit_masks.image_size) == (12, 16)
    assert masks.device == bit_masks.device
    assert repr(masks) == "LabelMasks(num_instances=6)"
    assert masks.nonempty().tolist() == [True, True, True, True, True, False]
    for mask, expected in zip(masks, bit_masks, strict=True):
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected)


def test_crop_and_resize(masks):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(6, 2, generator=generator) * 12 - 3
    boxes = torch.cat([corner, corner + torch.rand(6, 2, generator=generator) * 12], dim=1)
    expected = bit_masks_of(masks).crop_and_resize(boxes, 28)
    found = masks.crop_and_resize(boxes, 28)
    assert found.any()
    assert torch.equal(found, expected)
    assert torch.equal(
        masks[[4, 0]].crop_and_resize(boxes[[4, 0]], 28),
        expected[[4, 0]],
    )


@pytest.mark.parametrize(
    "item",
    [
        0,
        -1,
        slice(1, 4),
        slice(None, None, 2),
        slice(0, 0),
        torch.tensor([True, False, True, False, False, True]),
        torch.zeros(6, dtype=torch.bool),
        torch.tensor([3, 3, 0]),
        torch.zeros(0, dtype=torch.int64),
        np.array([5, 1]),
        [2, 4],
    ],
    ids=str,
)
def test_indexing(masks, item):
    selected = masks[item]
    assert_same(selected, bit_masks_of(masks)[item])
    assert selected.label_maps is masks.label_maps


def test_wrong_indices(masks):
    with pytest.raises(IndexError):
        masks[6]
    with pytest.raises(IndexError):
        masks[torch.zeros(2, 2, dtype=torch.int64)]


def test_maps_are_read_once_for_all_selections(masks, monkeypatch):
    scanned = []

    def counting(label_map):
        scanned.append(label_map)
        return encode(label_map)

    encode = label_masks.encode_label_map
    monkeypatch.setattr(label_masks, "encode_label_map", counting)
    first = masks[:3]
    first.nonempty()
    assert len(scanned) == 1  # the other layer is not asked for
    for _ in range(2):
        masks.get_bounding_boxes()
        first[[0, 2]].to("cpu").area()
        LabelMasks.cat([masks, first]).area()
    assert len(scanned) == 2


def test_in_instances(masks):
    instances = Instances((12, 16), gt_masks=masks, gt_boxes=masks.get_bounding_boxes())
    kept = instances[instances.gt_masks.nonempty()]
    assert len(kept) == 5
    assert_same(kept.gt_masks, bit_masks_of(masks)[:5])
    again = Instances.cat([kept, instances[5]]).to("cpu")
    assert_same(again.gt_masks, bit_masks_of(masks))


def test_cat_of_different_maps(masks):
    other = LabelMasks(
        torch.ones(1, 12, 16, dtype=torch.uint8), torch.tensor([0]), torch.tensor([1])
    )
    joined = LabelMasks.cat([masks, other, masks[:2]])
    parts = [bit_masks_of(part) for part in (masks, other, masks[:2])]
    assert_same(joined, BitMasks.cat(parts))
    assert joined.label_maps.shape == (3, 12, 16)  # the maps of `masks` only once


def test_cat_refuses(masks):
    small = LabelMasks(torch.zeros(1, 3, 3, dtype=torch.int32), *[torch.zeros(0).long()] * 2)
    with pytest.raises(ValueError, match="one size"):
        LabelMasks.cat([masks, small])
    with pytest.raises(ValueError, match="one size"):
        LabelMasks.cat([])


def test_no_instances():
    nothing = torch.zeros(0, dtype=torch.int64)
    masks = LabelMasks(torch.zeros(4, 5, 6, dtype=torch.int32), nothing, nothing)
    assert_same(masks, bit_masks_of(masks))
    assert masks.crop_and_resize(torch.zeros(0, 4), 28).shape == (0, 28, 28)
    assert list(masks) == []
    no_layers = LabelMasks(torch.zeros(0, 5, 6, dtype=torch.int32), nothing, nothing)
    assert no_layers.area().shape == (0,)


def test_pickles(masks):
    masks.area()
    assert_same(pickle.loads(pickle.dumps(masks)), bit_masks_of(masks))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), layers=st.integers(1, 3), height=st.integers(1, 12))
def test_random_maps(seed, layers, height):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, 9, (layers, height, 10), generator=generator, dtype=torch.int32)
    count = int(torch.randint(0, 30, (1,), generator=generator))
    masks = LabelMasks(
        maps,
        torch.randint(0, layers, (count,), generator=generator),
        torch.randint(1, 14, (count,), generator=generator),
    )
    assert_same(masks, bit_masks_of(masks))


MAPS, LAYER, ID = torch.zeros(2, 4, 5, dtype=torch.int32), torch.tensor([1]), torch.tensor([3])


@pytest.mark.parametrize(
    ("label_maps", "layers", "ids", "error"),
    [
        (MAPS.float(), LAYER, ID, TypeError),
        (MAPS.bool(), LAYER, ID, TypeError),
        (MAPS[0], LAYER, ID, ValueError),
        (MAPS, LAYER.float(), ID, TypeError),
        (MAPS, LAYER, ID.bool(), TypeError),
        (MAPS, torch.tensor([0, 1]), ID, ValueError),
        (MAPS, LAYER[:, None], ID[:, None], ValueError),
        (MAPS, torch.tensor([2]), ID, ValueError),
        (MAPS, torch.tensor([-1]), ID, ValueError),
        (MAPS, LAYER, torch.tensor([0]), ValueError),
        (MAPS, LAYER, torch.tensor([2**31]), ValueError),
        (MAPS.to(torch.uint8), LAYER, torch.tensor([256]), ValueError),
    ],
)
def test_refusals(label_maps, layers, ids, error):
    with pytest.raises(error):
        LabelMasks(label_maps, layers, ids)


def test_refuses_another_dtype(masks):
    with pytest.raises(TypeError, match="keep their dtype"):
        masks.to(torch.float32)


@pytest.mark.parametrize(
    "boxes", [torch.zeros(5, 4), torch.zeros(6, 5), torch.full((6, 4), np.nan)]
)
def test_refuses_boxes(masks, boxes):
    with pytest.raises(ValueError, match="boxes"):
        masks.crop_and_resize(boxes, 28)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda(masks):
    moved = masks.to("cuda")
    assert moved.device.type == moved.ids.device.type == "cuda"
    assert torch.equal(moved.area().cpu(), masks.area())
    boxes = masks.get_bounding_boxes().tensor
    assert moved.get_bounding_boxes().tensor.device.type == "cuda"
    assert torch.equal(
        moved.crop_and_resize(boxes.cuda(), 28).cpu(), masks.crop_and_resize(boxes, 28)
    )
