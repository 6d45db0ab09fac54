"""Oracle: masks decoded by pycocotools and painted one by one, the best last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellseg_d2.structures import flatten
from cellseg_d2.structures.flatten import LabelMapPainter, flatten_masks


def encode(masks: np.ndarray) -> list[dict]:
    return [mask_util.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


def painted(rles: list[dict], scores, size: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
    """Paint masks from the lowest score to the highest, the later of equal ones first."""
    index = np.full(size, -1)
    for i in sorted(range(len(rles)), key=lambda i: (scores[i], -i)):
        index[mask_util.decode(rles[i]).astype(bool)] = i
    kept = [i for i in range(len(rles)) if (index == i).any()]
    label_map = np.zeros(size, dtype=np.int32)
    for new, old in enumerate(kept, 1):
        label_map[index == old] = new
    return label_map, kept


def assert_same(found, rles, scores, size) -> None:
    label_map, kept = painted(rles, scores, size)
    assert found.label_map.dtype == np.int32
    assert np.array_equal(found.label_map, label_map)
    assert found.kept.tolist() == kept
    assert found.dropped == len(rles) - len(kept)
    expected = np.zeros(len(rles), dtype=int)
    expected[kept] = np.arange(1, len(kept) + 1)
    assert found.ids.tolist() == expected.tolist()


masks_and_scores = hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)).flatmap(
    lambda masks: st.tuples(
        st.just(masks),
        st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=len(masks), max_size=len(masks)),
    )
)


@settings(max_examples=200, deadline=None)
@given(masks_and_scores)
def test_equals_painting_one_by_one(case):
    masks, scores = case
    rles, size = encode(masks), masks.shape[1:]
    assert_same(flatten_masks(rles, scores, size), rles, scores, size)


@settings(max_examples=100, deadline=None)
@given(masks_and_scores, st.integers(0, 7))
def test_parts_equal_the_whole(case, cut):
    masks, scores = case
    rles, size = encode(masks), masks.shape[1:]
    painter = LabelMapPainter(*size)
    provisional = [painter.add(rles[:cut], scores[:cut]), painter.add(rles[cut:], scores[cut:])]
    assert np.concatenate(provisional).tolist() == list(range(1, len(rles) + 1))
    assert_same(painter.finish(), rles, scores, size)


def discs(rng: np.random.Generator, count: int, size: tuple[int, int]) -> list[dict]:
    y, x = np.mgrid[: size[0], : size[1]]
    centres = rng.uniform(0, size, (count, 2))
    radii = rng.uniform(3, 20, count)
    masks = ((y - c[0]) ** 2 + (x - c[1]) ** 2 <= r**2 for c, r in zip(centres, radii, strict=True))
    return [encode(mask[None])[0] for mask in masks]


@pytest.mark.parametrize("chunk", [1, 50, 2**20])
def test_crowded_discs_in_chunks_of_any_size(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatten, "_PIXELS_PER_CHUNK", chunk)
    rng = np.random.default_rng(0)
    size = (90, 130)
    rles = discs(rng, 120, size)
    scores = rng.uniform(size=120).round(1)
    found = flatten_masks(rles, scores, size)
    assert_same(found, rles, scores, size)
    assert 0 < found.dropped < 100  # the case is crowded, and not hopeless


def test_order_of_parts_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    size = (90, 130)
    rles, scores = discs(rng, 60, size), rng.permutation(60) / 60
    forwards, backwards = LabelMapPainter(*size), LabelMapPainter(*size)
    for i in range(60):
        forwards.add([rles[i]], [scores[i]])
        backwards.add([rles[59 - i]], [scores[59 - i]])
    first, last = forwards.finish(), backwards.finish()
    owner = np.concatenate([[-1], first.kept])[first.label_map]
    assert np.array_equal(owner, np.concatenate([[-1], 59 - last.kept])[last.label_map])


def test_paints_on_a_memory_map(tmp_path: Path) -> None:
    size = (90, 130)
    out = np.memmap(tmp_path / "map", np.int32, "w+", shape=size)
    rles = discs(np.random.default_rng(2), 40, size)
    painter = LabelMapPainter(*size, out)
    painter.add(rles, np.ones(40))
    found = painter.finish()
    assert found.label_map is out
    assert_same(found, rles, np.ones(40), size)


def test_two_discs_worked_out_by_hand() -> None:
    mask = np.zeros((3, 4, 6), dtype=bool)
    mask[0, :, :3] = True
    mask[1, :, 2:] = True
    mask[2, 1:3, 3:5] = True
    found = flatten_masks(encode(mask), [0.9, 0.8, 0.1], (4, 6))
    assert found.label_map.tolist() == [[1, 1, 1, 2, 2, 2]] * 4
    assert found.kept.tolist() == [0, 1] and found.ids.tolist() == [1, 2, 0]
    assert found.dropped == 1


def test_nothing_and_an_empty_mask() -> None:
    found = flatten_masks([], [], (4, 6))
    assert not found.label_map.any() and found.label_map.shape == (4, 6)
    assert len(found.kept) == 0 and found.dropped == 0
    found = flatten_masks(encode(np.zeros((1, 4, 6))), [0.5], (4, 6))
    assert not found.label_map.any() and found.dropped == 1
    assert flatten_masks([], [], (0, 0)).label_map.shape == (0, 0)


def test_refusals() -> None:
    rles = encode(np.ones((1, 2, 2)))
    with pytest.raises(ValueError, match="scores"):
        flatten_masks(rles, [], (2, 2))
    with pytest.raises(ValueError, match="finite"):
        flatten_masks(rles, [float("nan")], (2, 2))
    with pytest.raises(ValueError, match="size"):
        flatten_masks(rles, [0.5], (2, 3))
    for out in (np.zeros((2, 3), np.int32), np.zeros((2, 2)), np.zeros((2, 2), np.int32, "F")):
        with pytest.raises(ValueError, match="C-contiguous"):
            LabelMapPainter(2, 2, out)
