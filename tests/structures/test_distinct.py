"""Oracle: masks decoded by pycocotools, and one canvas on which the kept ones are painted."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_d2.structures import distinct
from cellseg_d2.structures.distinct import distinct_instances

from .test_flatten import discs, encode, masks_and_scores


def chosen_one_by_one(rles, scores, size, min_visible) -> list[int]:
    canvas = np.zeros(size, dtype=bool)
    kept = []
    for i in sorted(range(len(rles)), key=lambda i: (-scores[i], i)):
        mask = mask_util.decode(rles[i]).astype(bool)
        if mask.any() and (mask & ~canvas).sum() >= min_visible * mask.sum():
            canvas |= mask
            kept.append(i)
    return sorted(kept)


@settings(max_examples=200, deadline=None)
@given(masks_and_scores, st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_equals_painting_one_by_one(case, min_visible) -> None:
    masks, scores = case
    rles, size = encode(masks), masks.shape[1:]
    found = distinct_instances(rles, scores, size, min_visible)
    assert found.dtype == np.int64
    assert found.tolist() == chosen_one_by_one(rles, scores, size, min_visible)


@pytest.mark.parametrize("chunk", [1, 500, 2**20])
def test_crowded_discs_in_chunks_of_any_size(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct, "_PIXELS_PER_CHUNK", chunk)
    rng = np.random.default_rng(0)
    size = (90, 130)
    rles, scores = discs(rng, 120, size), rng.uniform(size=120).round(1)
    found = distinct_instances(rles, scores, size).tolist()
    assert found == chosen_one_by_one(rles, scores, size, 0.5)
    assert 20 < len(found) < 100


def test_worked_out_by_hand() -> None:
    masks = np.zeros((5, 20, 20), dtype=bool)
    masks[0, 2:6, 2:12] = True  # 40 pixels
    masks[1, 2:6, 7:17] = True  # half of it under the first
    masks[2, 2:6, 6:16] = True  # 6 of 10 columns under the first
    masks[3, 2:6, 2:12] = True  # the first again; of an equal score, and later
    rles = encode(masks)
    assert distinct_instances(rles[:2], [0.9, 0.8], (20, 20)).tolist() == [0, 1]
    assert distinct_instances(rles[::2][:2], [0.9, 0.8], (20, 20)).tolist() == [0]
    # What was dropped covers nothing: the second needs the first alone to leave it a half.
    assert distinct_instances(rles, [0.9, 0.7, 0.8, 0.9, 1.0], (20, 20)).tolist() == [0, 1]


def test_nothing_and_faults() -> None:
    assert distinct_instances([], [], (5, 7)).tolist() == []
    empty = encode(np.zeros((2, 5, 7)))
    assert distinct_instances(empty, [0.5, 0.6], (5, 7)).tolist() == []
    with pytest.raises(ValueError, match="2 masks need as many scores"):
        distinct_instances(empty, [0.5], (5, 7))
    with pytest.raises(ValueError):
        distinct_instances(empty, [0.5, 0.6], (6, 7))
