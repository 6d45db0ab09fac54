"""Oracle: ``paste_masks_in_image`` and ``pycocotools.mask.encode``, byte for byte."""

import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_d2.structures import RLEMasks, encode_roi_masks, rle


def encode(mask) -> dict:
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))


def paste_and_encode(masks, boxes, image_size, threshold=0.5) -> list[dict]:
    masks = masks[:, 0] if masks.dim() == 4 else masks
    return [encode(mask) for mask in paste_masks_in_image(masks, boxes, image_size, threshold)]


def random_masks(generator, count, mask_size, dtype=torch.float32) -> torch.Tensor:
    """Blobs, and a third of them noise: runs of all lengths."""
    axis = torch.linspace(-1, 1, mask_size)
    radius = (axis[:, None] ** 2 + axis**2).sqrt()
    noise = torch.randn(count, 1, mask_size, mask_size, generator=generator)
    masks = torch.sigmoid(8 * (0.8 - radius) + noise)
    masks[::3] = torch.rand(masks[::3].shape, generator=generator)
    return masks.to(dtype)


def random_boxes(generator, count, image_size) -> torch.Tensor:
    """Boxes in and over the image's sides, from less than a pixel to all of it."""
    extent = torch.tensor(image_size[::-1], dtype=torch.float32)
    center = torch.rand(count, 2, generator=generator) * extent
    half = torch.rand(count, 2, generator=generator) ** 3 * extent * 0.7
    boxes = torch.cat([center - half, center + half], dim=1)
    boxes[::4] = boxes[::4].round()
    return boxes


@pytest.mark.parametrize("mask_size", [28, 14, 1, 7])
@pytest.mark.parametrize("image_size", [(90, 120), (61, 37), (1, 50), (300, 4)])
def test_random_boxes(image_size, mask_size):
    generator = torch.Generator().manual_seed(mask_size)
    masks = random_masks(generator, 60, mask_size)
    boxes = random_boxes(generator, 60, image_size)
    found = encode_roi_masks(masks, boxes, image_size)
    assert found == paste_and_encode(masks, boxes, image_size)
    assert encode_roi_masks(masks[:, 0], Boxes(boxes), image_size) == found


def test_cells_of_a_large_image():
    generator = torch.Generator().manual_seed(1)
    masks = random_masks(generator, 300, 28)
    center = torch.rand(300, 2, generator=generator) * 400
    size = torch.rand(300, 2, generator=generator) * 40 + 4
    boxes = torch.cat([center - size / 2, center + size / 2], dim=1).clamp(0, 400)
    assert encode_roi_masks(masks, boxes, (400, 400)) == paste_and_encode(masks, boxes, (400, 400))


@settings(max_examples=60, deadline=None)
@given(
    corner=st.tuples(*[st.floats(-20, 30, width=32)] * 2),
    extent=st.tuples(*[st.floats(0, 60, width=32)] * 2),
    threshold=st.sampled_from([0.5, 0.0, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 99),
)
def test_any_box_that_meets_the_image(corner, extent, threshold, seed):
    x, y = corner
    width, height = max(extent[0], -x), max(extent[1], -y)
    masks = random_masks(torch.Generator().manual_seed(seed), 3, 6)
    boxes = torch.tensor([[x, y, x + width, y + height]]).expand(3, 4)
    expected = paste_and_encode(masks, boxes, (31, 32), threshold)
    assert encode_roi_masks(masks, boxes, (31, 32), threshold) == expected


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_thresholds(threshold):
    # Below one half a mask reaches out of its box, as far as Detectron2 pastes.
    generator = torch.Generator().manual_seed(4)
    masks = random_masks(generator, 40, 5)
    masks[1::3] = masks[1::3].round()  # ones and zeros, so that 1.0 is met
    boxes = random_boxes(generator, 40, (70, 80))
    expected = paste_and_encode(masks, boxes, (70, 80), threshold)
    assert encode_roi_masks(masks, boxes, (70, 80), threshold) == expected


@pytest.mark.parametrize("box_dtype", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("mask_dtype", [torch.float32, torch.float64, torch.uint8, torch.bool])
def test_dtypes(mask_dtype, box_dtype):
    generator = torch.Generator().manual_seed(6)
    masks = (random_masks(generator, 20, 28) + 0.3).to(mask_dtype)
    boxes = random_boxes(generator, 20, (50, 60)).to(box_dtype)
    boxes[:, 2:] += 1
    assert encode_roi_masks(masks, boxes, (50, 60)) == paste_and_encode(masks, boxes, (50, 60))


def test_runs_over_the_ends_of_columns():
    # A mask as high as the image is one run over many columns.
    masks, boxes = torch.ones(2, 1, 28, 28), torch.tensor([[3.0, -40, 30, 80], [-50, -50, 90, 90]])
    found = encode_roi_masks(masks, boxes, (20, 40))
    assert found == paste_and_encode(masks, boxes, (20, 40))
    assert mask_util.area(found).tolist() == [27 * 20, 40 * 20]


@pytest.mark.parametrize(
    "box",
    [
        (500, 2, 520, 9),  # beyond the image: Detectron2 fails on some of these
        (-60, -60, -30, -30),
        (2, 90, 9, 120),
        (1e12, 1e12, 2e12, 2e12),
        (9, 9, 2, 2),
    ],
)
def test_box_outside_gives_an_empty_mask(box):
    found = encode_roi_masks(torch.ones(1, 28, 28), torch.tensor([box]).float(), (40, 50))
    assert found == [encode(np.zeros((40, 50)))]


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 5, 9, 5), (5.5, 5.5, 5.5, 5.5), (0, 0, 0, 0)])
def test_box_without_area(box):
    masks, boxes = torch.ones(1, 28, 28), torch.tensor([box], dtype=torch.float32)
    assert encode_roi_masks(masks, boxes, (40, 50)) == paste_and_encode(masks, boxes, (40, 50))


def test_disc_by_hand():
    # A mask pixel an image pixel: columns of 1, 3 and 1 pixels in the middle of a 5x5 RoI.
    mask = torch.zeros(1, 5, 5)
    mask[0, 1:4, 2] = mask[0, 2, 1:4] = 1
    found = encode_roi_masks(mask, torch.tensor([[10.0, 20, 15, 25]]), (30, 40))
    counts = [11 * 30 + 22, 1, 28, 3, 28, 1, 30 * 40 - 13 * 30 - 23]
    assert found == [mask_util.frPyObjects({"size": [30, 40], "counts": counts}, 30, 40)]


def test_small_chunks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    masks, boxes = random_masks(generator, 40, 28), random_boxes(generator, 40, (60, 70))
    expected = encode_roi_masks(masks, boxes, (60, 70))
    monkeypatch.setattr(rle, "_PIXELS_PER_CHUNK", 300)
    assert encode_roi_masks(masks, boxes, (60, 70)) == expected


def test_no_masks():
    assert encode_roi_masks(torch.zeros(0, 1, 28, 28), torch.zeros(0, 4), (40, 50)) == []
    assert encode_roi_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (40, 50)) == []


@pytest.mark.parametrize(
    ("masks", "boxes", "threshold", "message"),
    [
        (torch.ones(2, 28, 28), torch.zeros(1, 4), 0.5, "boxes"),
        (torch.ones(2, 2, 28, 28), torch.zeros(2, 4), 0.5, "shape"),
        (torch.ones(2, 28, 14), torch.zeros(2, 4), 0.5, "shape"),
        (torch.ones(28, 28), torch.zeros(28, 4), 0.5, "shape"),
        (torch.ones(1, 28, 28), torch.zeros(1, 4), -1, "threshold"),
        (torch.ones(1, 28, 28), torch.zeros(1, 4), 1.5, "threshold"),
        (torch.ones(1, 28, 28), torch.full((1, 4), np.nan), 0.5, "finite"),
        (torch.ones(1, 28, 28), torch.tensor([[0, 0, np.inf, 5]]), 0.5, "finite"),
    ],
)
def test_refusals(masks, boxes, threshold, message):
    with pytest.raises(ValueError, match=message):
        encode_roi_masks(masks, boxes, (40, 50), threshold)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_differs_in_at_most_one_pixel_of_a_hundred_thousand():
    generator = torch.Generator().manual_seed(7)
    masks = random_masks(generator, 200, 28)
    boxes = random_boxes(generator, 200, (200, 200))
    found = encode_roi_masks(masks.cuda(), boxes.cuda(), (200, 200))
    expected = paste_masks_in_image(masks[:, 0].cuda(), boxes.cuda(), (200, 200)).cpu()
    decoded = RLEMasks(found, (200, 200)).to_bit_masks().tensor
    assert (decoded != expected).sum() <= decoded.numel() * 1e-5


@pytest.fixture
def bit_masks() -> BitMasks:
    """Five masks of 11x13: empty, full, in two parts, of noise, and along the border."""
    masks = torch.zeros(5, 11, 13, dtype=torch.bool)
    masks[1] = True
    masks[2, 3:5, 2:9] = masks[2, 8, 11] = True
    masks[3] = torch.rand(11, 13, generator=torch.Generator().manual_seed(0)) < 0.5
    masks[4, 10, :] = True
    return BitMasks(masks)


@pytest.fixture
def rle_masks(bit_masks) -> RLEMasks:
    return RLEMasks([encode(mask) for mask in bit_masks], (11, 13))


def assert_same(masks: RLEMasks, bit_masks: BitMasks) -> None:
    assert len(masks) == len(masks.rles) == len(bit_masks)
    assert torch.equal(masks.to_bit_masks().tensor, bit_masks.tensor)
    assert torch.equal(masks.nonempty(), bit_masks.nonempty())
    assert torch.equal(masks.area(), bit_masks.tensor.flatten(1).sum(dim=1))
    expected_boxes = bit_masks.get_bounding_boxes().tensor
    assert torch.equal(masks.get_bounding_boxes().tensor, expected_boxes)


def test_rle_masks_are_as_bit_masks(rle_masks, bit_masks):
    assert_same(rle_masks, bit_masks)
    for mask, expected in zip(rle_masks, bit_masks, strict=True):
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected)
    assert repr(rle_masks) == "RLEMasks(num_instances=5)"
    assert rle_masks.image_size == (11, 13)
    assert_same(pickle.loads(pickle.dumps(rle_masks)), bit_masks)


@pytest.mark.parametrize(
    "item",
    [
        3,
        -1,
        slice(1, 4),
        slice(0, 0),
        torch.tensor([True, False, True, False, True]),
        torch.tensor([4, 4, 0]),
        torch.zeros(0, dtype=torch.int64),
        np.array([False, True, True, False, False]),
        np.array([2, 0]),
        [1, 3],
    ],
    ids=str,
)
def test_rle_masks_indexing(rle_masks, bit_masks, item):
    assert_same(rle_masks[item], bit_masks[item])


def test_rle_masks_wrong_index(rle_masks):
    with pytest.raises(IndexError):
        rle_masks[5]


def test_rle_masks_in_instances(rle_masks, bit_masks):
    instances = Instances((11, 13), pred_masks=rle_masks, scores=torch.arange(5) / 5)
    best = instances[instances.scores.argsort(descending=True)][:3].to("cpu")
    assert_same(best.pred_masks, bit_masks[[4, 3, 2]])
    assert_same(Instances.cat([best, instances[0:1]]).pred_masks, bit_masks[[4, 3, 2, 0]])


def test_rle_masks_as_an_array(rle_masks, bit_masks):
    # As Detectron2's Visualizer asks for them.
    array = np.asarray(rle_masks)
    assert array.dtype == bool
    np.testing.assert_array_equal(array, bit_masks.tensor.numpy())
    assert np.asarray(rle_masks, dtype=np.uint8).dtype == np.uint8


def test_rle_masks_in_the_coco_evaluator(rle_masks):
    instances = Instances(
        (11, 13),
        pred_masks=rle_masks,
        pred_boxes=rle_masks.get_bounding_boxes(),
        scores=torch.ones(5),
        pred_classes=torch.zeros(5, dtype=torch.int64),
    )
    predictions = instances_to_coco_json(instances, 7)
    found = [prediction["segmentation"] for prediction in predictions]
    assert found == [{**rle, "counts": rle["counts"].decode()} for rle in rle_masks.rles]


def test_rle_masks_empty_set():
    masks = RLEMasks([], (11, 13))
    assert_same(masks, BitMasks(torch.zeros(0, 11, 13)))
    assert list(masks) == []


def test_rle_masks_refuse_other_sizes(rle_masks):
    with pytest.raises(ValueError, match="size"):
        RLEMasks(rle_masks.rles, (13, 11))
    with pytest.raises(ValueError, match="one size"):
        RLEMasks.cat([rle_masks, RLEMasks([], (13, 11))])
    with pytest.raises(ValueError, match="one size"):
        RLEMasks.cat([])


def test_areas_of_more_masks_than_a_byte_counts() -> None:
    rle = mask_util.encode(np.asfortranarray(np.ones((3, 4), np.uint8)))
    masks = RLEMasks([rle] * 300, (3, 4))
    assert masks.area().tolist() == [12] * 300 and masks.nonempty().all()
