"""Oracle: ``np.rot90``, ``np.flip`` and ``np.transpose`` on images and on decoded masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellseg_d2.inference import dihedral
from cellseg_d2.inference.dihedral import SYMMETRIES
from cellseg_d2.structures import RLEMasks
from cellseg_d2.structures.run_decoding import decode_runs

ORACLES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda a: a,
    "rot90": lambda a: np.rot90(a),
    "rot180": lambda a: np.rot90(a, 2),
    "rot270": lambda a: np.rot90(a, 3),
    "hflip": lambda a: np.flip(a, 1),
    "vflip": lambda a: np.flip(a, 0),
    "transpose": lambda a: np.swapaxes(a, 0, 1),
    "antitranspose": lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
}


def encode(masks: np.ndarray) -> list[dict]:
    return [mask_util.encode(np.asfortranarray(mask)) for mask in masks.astype(np.uint8)]


def answer(masks: np.ndarray) -> Instances:
    """The masks of (N, H, W) as an answer, with their tight boxes."""
    size = masks.shape[1:]
    rle_masks = RLEMasks(encode(masks), size)
    return Instances(
        size,
        pred_boxes=rle_masks.get_bounding_boxes(),
        scores=torch.linspace(0.9, 0.1, len(masks)),
        pred_masks=rle_masks,
    )


def test_names() -> None:
    assert set(SYMMETRIES) == set(ORACLES) and len(set(SYMMETRIES.values())) == 8


@pytest.mark.parametrize("name", SYMMETRIES)
def test_images(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    expected = ORACLES[name](image)
    assert np.array_equal(SYMMETRIES[name].apply(image), expected)
    assert np.array_equal(SYMMETRIES[name].apply(image[:, :, 0]), expected[:, :, 0])


@pytest.mark.parametrize("name", SYMMETRIES)
@settings(max_examples=60, deadline=None)
@given(masks=hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)))
def test_masks_and_boxes_come_back(name: str, masks: np.ndarray) -> None:
    turned = np.stack([ORACLES[name](mask) for mask in masks])
    undone = SYMMETRIES[name].undo(answer(turned))
    assert undone.image_size == masks.shape[1:]
    assert undone.pred_masks.rles == encode(masks)
    full = torch.from_numpy(masks.any(axis=(1, 2)))
    expected = answer(masks)
    assert torch.equal(undone.pred_boxes.tensor[full], expected.pred_boxes.tensor[full])
    assert torch.equal(undone.scores, expected.scores)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SYMMETRIES)),
    masks=hnp.arrays(bool, (4, 6, 5)),
    pixels=st.integers(1, 30),
)
def test_chunks_do_not_show(name: str, masks: np.ndarray, pixels: int) -> None:
    turned = np.stack([ORACLES[name](mask) for mask in masks])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dihedral, "_PIXELS_PER_CHUNK", pixels)
        runs = SYMMETRIES[name].undo_runs(decode_runs(encode(turned), turned.shape[1:]))
    assert runs.rles() == encode(masks)


def test_a_box_between_pixels_by_hand() -> None:
    """In an image of 10x20, a box .5 from the left and 1 from the top."""
    box = torch.tensor([[0.5, 1.0, 4.0, 8.0]])
    expected = {
        "none": [0.5, 1.0, 4.0, 8.0],
        "hflip": [16.0, 1.0, 19.5, 8.0],
        "vflip": [0.5, 2.0, 4.0, 9.0],
        "rot180": [16.0, 2.0, 19.5, 9.0],
        # The turned image of 10x20 stems from one of 20x10.
        "transpose": [1.0, 0.5, 8.0, 4.0],
        "rot90": [2.0, 0.5, 9.0, 4.0],
        "rot270": [1.0, 16.0, 8.0, 19.5],
        "antitranspose": [2.0, 16.0, 9.0, 19.5],
    }
    for name, values in expected.items():
        undone = SYMMETRIES[name].undo(Instances((10, 20), pred_boxes=Boxes(box)))
        assert undone.image_size == ((20, 10) if SYMMETRIES[name].transpose else (10, 20))
        assert undone.pred_boxes.tensor.tolist() == [values], name


@pytest.mark.parametrize("name", SYMMETRIES)
def test_nothing(name: str) -> None:
    undone = SYMMETRIES[name].undo(answer(np.zeros((0, 4, 6), bool)))
    assert len(undone) == 0 and undone.pred_boxes.tensor.shape == (0, 4)
    assert undone.image_size == ((6, 4) if SYMMETRIES[name].transpose else (4, 6))
