"""Stubs that hold so many pixels and no more. Oracle: the same finder without a limit."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from scipy import ndimage

from cellseg_d2.errors import MachineError
from cellseg_d2.inference import CellPredictor
from cellseg_d2.inference.out_of_memory import MemoryGuard
from cellseg_d2.machine_faults import is_out_of_memory
from cellseg_d2.structures import RLEMasks, encode_label_map

from .models import save_weights, tiny_config


class Limited:
    """Finds connected regions in as many pixels as memory holds; one score for each place."""

    def __init__(self, pixels: float, error: Exception | None = None) -> None:
        self.pixels = pixels
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.asked: list[list[tuple[int, int]]] = []

    def __call__(self, images: list[np.ndarray]) -> list[Instances]:
        self.asked.append([image.shape[:2] for image in images])
        if sum(height * width for height, width in self.asked[-1]) > self.pixels:
            raise self.error
        return [regions(image) for image in images]


def regions(image: np.ndarray) -> Instances:
    labels = ndimage.label(image[:, :, 0])[0].astype(np.int32)
    found = encode_label_map(labels)
    size = labels.shape
    scores = np.zeros(0)
    if len(found.ids):
        scores = ndimage.maximum(image[:, :, 1], labels, found.ids) / 255
    order = np.argsort(-scores, kind="stable")
    masks = RLEMasks(found.rles(), size)[torch.from_numpy(order)]
    return Instances(
        size,
        pred_boxes=masks.get_bounding_boxes() if len(masks) else Boxes(torch.zeros(0, 4)),
        scores=torch.tensor(scores[order], dtype=torch.float32),
        pred_classes=torch.zeros(len(order), dtype=torch.int64),
        pred_masks=masks,
    )


def picture(seed: int, height: int = 700, width: int = 900, cells: int = 60) -> np.ndarray:
    """Squares apart from each other, each of a score of its own."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    places = [(y, x) for y in range(10, height - 30, 50) for x in range(10, width - 30, 50)]
    for rank, index in enumerate(rng.permutation(len(places))[:cells]):
        y, x = places[index]
        side = int(rng.integers(5, 26))
        image[y : y + side, x : x + side] = (255, 255 - rank, 0)
    return image


def contents(answer: Instances) -> list[tuple]:
    rles = [rle["counts"] for rle in answer.pred_masks.rles]
    return list(zip(rles, answer.scores.tolist(), answer.pred_boxes.tensor.tolist(), strict=True))


def test_what_fits_is_asked_for_once() -> None:
    find = Limited(1e9)
    images = [picture(0), picture(1)]
    answers = MemoryGuard(find, 64)(images)
    assert len(find.asked) == 1
    assert [contents(a) for a in answers] == [contents(regions(image)) for image in images]


def test_several_images_are_halved_and_stay_in_order() -> None:
    images = [picture(seed, 100, 100, 2) for seed in range(5)]
    find = Limited(25_000)
    answers = MemoryGuard(find, 64)(images)
    assert [contents(a) for a in answers] == [contents(regions(image)) for image in images]
    assert [len(asked) for asked in find.asked] == [5, 2, 3, 1, 2]


@pytest.mark.parametrize("pixels", [700 * 900 - 1, 512 * 512, 256 * 256])
def test_one_image_is_cut_until_it_fits(pixels: int, caplog: pytest.LogCaptureFixture) -> None:
    image = picture(3)
    with caplog.at_level(logging.WARNING):
        (answer,) = MemoryGuard(Limited(pixels), 64)([image])
    # Cells smaller than the overlap are found whole, so the answer is that to the whole image.
    assert contents(answer) == contents(regions(image)) and len(answer) == 60
    assert answer.image_size == (700, 900)
    warned = [r.getMessage() for r in caplog.records if "do not fit into memory" in r.getMessage()]
    assert warned and "TEST.TILE.SIZE" in warned[-1]


def test_an_image_without_cells() -> None:
    (answer,) = MemoryGuard(Limited(256 * 256), 64)([np.zeros((600, 500, 3), np.uint8)])
    assert len(answer) == 0 and answer.image_size == (600, 500)


def test_what_never_fits_is_a_clear_error() -> None:
    find = Limited(100)
    with pytest.raises(MachineError, match=r"700x900 pixels .* tiles of 256; .*MODEL.DEVICE cpu"):
        MemoryGuard(find, 64)([picture(0)])
    sides = {max(size) for asked in find.asked for size in asked}
    assert min(sides) == 256, "it gave up too soon, or went on for too long"


def test_tiles_are_larger_than_their_overlap() -> None:
    find = Limited(100)
    with pytest.raises(MachineError, match="tiles of 301"):
        MemoryGuard(find, 300)([picture(0)])


def test_a_model_that_resizes_is_not_given_tiles() -> None:
    find = Limited(100)
    with pytest.raises(MachineError, match=r"lower INPUT.MIN_SIZE_TEST"):
        MemoryGuard(find, 64, may_cut=False)([picture(0)])
    assert len(find.asked) == 1


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at x.cpp:1] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("CUDA out of memory"), False),
    ],
)
def test_other_errors_are_left_alone(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) == is_memory
    find = Limited(512 * 512, error)
    if is_memory:
        assert len(MemoryGuard(find, 64)([picture(0)])[0]) == 60
    else:
        with pytest.raises(type(error), match=str(error)[:20].replace("(", r"\(")):
            MemoryGuard(find, 64)([picture(0)])


def test_torch_says_so_where_the_machine_has_too_little() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_the_predictor_is_guarded(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_config("TEST.TILE.OVERLAP", "32")
    predictor = CellPredictor(cfg, [save_weights(tmp_path / "a.pth", 0)])
    forward = predictor.models[0].model.forward

    def limited(items: list[dict]) -> list[dict]:
        if sum(item["image"][0].numel() for item in items) > 300 * 300:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(items)

    monkeypatch.setattr(predictor.models[0].model, "forward", limited)
    image = np.random.default_rng(0).integers(0, 256, (320, 300, 3)).astype(np.uint8)
    instances = predictor(image)["instances"]
    assert instances.image_size == (320, 300) and len(instances) > 0
    assert (instances.scores[1:] <= instances.scores[:-1]).all()
