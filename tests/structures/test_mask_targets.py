"""Oracle: Detectron2's ``BitMasks.crop_and_resize`` on the same instances, to the bit."""

import pytest
import torch
from detectron2.structures import BitMasks
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_d2.structures import mask_targets
from cellseg_d2.structures.mask_targets import crop_label_maps


def random_maps(generator: torch.Generator, size: tuple[int, int], layers: int) -> torch.Tensor:
    """Overlapping rectangles, so that cells touch each other and the border."""
    maps = torch.zeros(layers, *size, dtype=torch.int32)
    for instance_id in range(1, 40):
        layer = int(torch.randint(layers, (1,), generator=generator))
        y, x = (int(torch.randint(-5, extent, (1,), generator=generator)) for extent in size)
        height, width = torch.randint(1, 25, (2,), generator=generator).tolist()
        maps[layer, max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] = instance_id
    return maps


def assert_as_bit_masks(maps, layers, ids, boxes, mask_size) -> torch.Tensor:
    found = crop_label_maps(maps, layers, ids, boxes, mask_size)
    bit_masks = BitMasks(maps[layers] == ids[:, None, None])
    expected = bit_masks.crop_and_resize(boxes, mask_size)
    assert found.dtype == torch.bool
    assert found.shape == expected.shape
    assert torch.equal(found, expected)
    return found


def random_boxes(generator: torch.Generator, count: int, size: tuple[int, int]) -> torch.Tensor:
    """Boxes in, over and beyond the image; a third of them on whole or half pixels."""
    extent = torch.tensor(size[::-1], dtype=torch.float32)
    center = (torch.rand(count, 2, generator=generator) * 1.4 - 0.2) * extent
    half = torch.rand(count, 2, generator=generator) ** 3 * extent * 0.8
    boxes = torch.cat([center - half, center + half], dim=1)
    kind = torch.randint(6, (count,), generator=generator)
    boxes[kind == 0] = boxes[kind == 0].round()
    boxes[kind == 1] = (boxes[kind == 1] * 2).round() / 2
    return boxes


# 4 x 250 targets of 28, 14 and 7 pixels squared: a million pixels, none of which may differ.
@pytest.mark.parametrize("mask_size", [28, 14, 7])
@pytest.mark.parametrize("size", [(80, 100), (61, 37), (200, 190), (9, 300)])
def test_random_boxes(size, mask_size):
    generator = torch.Generator().manual_seed(size[0] * mask_size)
    maps = random_maps(generator, size, layers=3)
    count = 250
    layers = torch.randint(3, (count,), generator=generator)
    ids = torch.randint(1, 40, (count,), generator=generator).to(torch.int32)
    boxes = random_boxes(generator, count, size)
    assert_as_bit_masks(maps, layers, ids, boxes, mask_size)


def test_boxes_around_their_instances():
    generator = torch.Generator().manual_seed(5)
    maps = random_maps(generator, (120, 120), layers=2)
    layers, y, x = torch.nonzero(maps, as_tuple=True)
    pick = torch.randint(len(y), (600,), generator=generator)
    layers, y, x = layers[pick], y[pick], x[pick]
    ids = maps[layers, y, x]
    corner = torch.stack([x, y], dim=1) + torch.randn(600, 2, generator=generator) * 3
    sizes = torch.rand(600, 2, generator=generator) * 60 + 2
    boxes = torch.cat([corner - sizes / 2, corner + sizes / 2], dim=1).clamp(0, 120)
    found = assert_as_bit_masks(maps, layers, ids, boxes, 28)
    assert 0.1 < found.float().mean() < 0.9


@settings(max_examples=60, deadline=None)
@given(
    corner=st.tuples(*[st.floats(-60, 60, width=32)] * 2),
    extent=st.tuples(*[st.floats(0, 120, width=32)] * 2),
    mask_size=st.integers(1, 9),
    seed=st.integers(0, 20),
)
def test_any_finite_box(corner, extent, mask_size, seed):
    box = (*corner, corner[0] + extent[0], corner[1] + extent[1])
    maps = random_maps(torch.Generator().manual_seed(seed), (30, 40), layers=1)
    layers, ids = torch.zeros(39, dtype=torch.int64), torch.arange(1, 40, dtype=torch.int32)
    assert_as_bit_masks(maps, layers, ids, torch.tensor([box]).expand(39, 4), mask_size)


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 20, 10),  # the image
        (-30, -30, 60, 50),  # far around it
        (-1000, -900, 1000, 1100),
        (25, 12, 40, 30),  # beyond it
        (-40, -40, -2, -2),
        (5, 5, 5, 9),  # without area
        (9, 9, 4, 2),  # reversed on both axes
        (3, 3, 3.001, 3.001),
        (19.5, 9.5, 20.5, 10.5),  # over the last pixel's corner
        (-0.5, -0.5, 0.5, 0.5),
        (0, 0, 56, 56),  # two samples a bin, exactly
    ],
)
def test_hand_picked_boxes(box):
    maps = torch.ones(1, 10, 20, dtype=torch.int32)
    maps[0, 3:6, 4:9] = 2
    layers, ids = torch.zeros(2, dtype=torch.int64), torch.tensor([1, 2], dtype=torch.int32)
    assert_as_bit_masks(maps, layers, ids, torch.tensor([box, box], dtype=torch.float32), 28)


def test_box_reversed_on_one_axis():
    # The kernel asks for a negative amount of memory here; there is nothing to see in such a box.
    maps = torch.ones(1, 50, 50, dtype=torch.int32)
    layer, one = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int32)
    assert not crop_label_maps(maps, layer, one, torch.tensor([[40.0, 0, 5, 40]]), 7).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_image_one_pixel_wide(size):
    maps = torch.ones(1, *size, dtype=torch.int32)
    boxes = random_boxes(torch.Generator().manual_seed(3), 50, (9, 9))
    layers, ids = torch.zeros(50, dtype=torch.int64), torch.ones(50, dtype=torch.int32)
    assert_as_bit_masks(maps, layers, ids, boxes, 4)


@pytest.mark.parametrize("box_dtype", [torch.float16, torch.float64, torch.int64])
@pytest.mark.parametrize("map_dtype", [torch.uint8, torch.int16, torch.int64])
def test_dtypes(map_dtype, box_dtype):
    generator = torch.Generator().manual_seed(11)
    maps = random_maps(generator, (60, 60), layers=1).to(map_dtype)
    ids = torch.arange(1, 40).to(map_dtype)
    boxes = random_boxes(generator, 39, (60, 60)).to(box_dtype)
    assert_as_bit_masks(maps, torch.zeros(39, dtype=torch.int64), ids, boxes, 14)


def test_no_boxes():
    nothing = torch.zeros(0, dtype=torch.int64)
    targets = crop_label_maps(torch.zeros(1, 5, 5), nothing, nothing, torch.zeros(0, 4), 28)
    assert targets.shape == (0, 28, 28)
    assert targets.dtype == torch.bool


def test_half_covered_bin_by_hand():
    # One bin over two pixels, one of them the instance's: the mean is exactly one half, and counts.
    maps = torch.tensor([[[0, 1, 2, 2]]], dtype=torch.int32)
    layer, one = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int32)
    assert crop_label_maps(maps, layer, one, torch.tensor([[1.0, 0.0, 3.0, 1.0]]), 1).item()
    assert not crop_label_maps(maps, layer, one, torch.tensor([[1.1, 0.0, 3.1, 1.0]]), 1).item()


def test_small_chunks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    maps = random_maps(generator, (70, 70), layers=2)
    layers = torch.randint(2, (30,), generator=generator)
    ids = torch.randint(1, 40, (30,), generator=generator).to(torch.int32)
    boxes = random_boxes(generator, 30, (70, 70))
    expected = crop_label_maps(maps, layers, ids, boxes, 28)
    monkeypatch.setattr(mask_targets, "_PIXELS_PER_CHUNK", 500)
    assert torch.equal(crop_label_maps(maps, layers, ids, boxes, 28), expected)


def test_autocast_changes_nothing():
    generator = torch.Generator().manual_seed(8)
    maps = random_maps(generator, (90, 90), layers=1)
    layers, ids = torch.zeros(39, dtype=torch.int64), torch.arange(1, 40, dtype=torch.int32)
    boxes = random_boxes(generator, 39, (90, 90))
    expected = crop_label_maps(maps, layers, ids, boxes, 28)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(crop_label_maps(maps, layers, ids, boxes, 28), expected)


def test_order_of_arithmetic_matters(monkeypatch):
    # Bins over a checkerboard are half covered. Without the second look at those, the same boxes
    # give other bits: the tests above would not pass by luck.
    yy, xx = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    maps = ((yy + xx) % 2).to(torch.int32)[None]
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 20, (200, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + torch.randint(8, 29, (200, 2), generator=generator)], dim=1)
    layers, ids = torch.zeros(200, dtype=torch.int64), torch.ones(200, dtype=torch.int32)
    expected = assert_as_bit_masks(maps, layers, ids, boxes, 7)
    monkeypatch.setattr(mask_targets, "_ROUNDING", -1.0)
    assert not torch.equal(crop_label_maps(maps, layers, ids, boxes, 7), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_differs_in_at_most_one_pixel_of_a_hundred_thousand():
    generator = torch.Generator().manual_seed(1)
    maps = random_maps(generator, (200, 200), layers=2)
    layers = torch.randint(2, (1000,), generator=generator)
    ids = torch.randint(1, 40, (1000,), generator=generator).to(torch.int32)
    boxes = random_boxes(generator, 1000, (200, 200))
    bit_masks = BitMasks((maps[layers] == ids[:, None, None]).cuda())
    expected = bit_masks.crop_and_resize(boxes.cuda(), 28)
    found = crop_label_maps(maps.cuda(), layers.cuda(), ids.cuda(), boxes.cuda(), 28)
    assert (found != expected).sum() <= found.numel() * 1e-5
