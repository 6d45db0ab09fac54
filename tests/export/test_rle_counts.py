"""Oracle: pycocotools on masks, and the format's own rules on damaged text."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellseg_d2.export.rle_counts import decode_counts, decode_crop, foreground_spans, tight_box

masks = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1)
)


def encode(mask: np.ndarray) -> dict:
    return mask_util.encode(np.asfortranarray(mask))


def runs_by_hand(mask: np.ndarray) -> list[int]:
    """Run lengths in column-major order, background first, by walking the pixels."""
    runs, value = [0], 0
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@given(masks)
def test_runs_equal_those_of_walking_the_pixels(mask: np.ndarray) -> None:
    assert decode_counts(encode(mask)["counts"], mask.shape).tolist() == runs_by_hand(mask)


@given(masks)
def test_tight_box_equals_pycocotools(mask: np.ndarray) -> None:
    rle = encode(mask)
    starts, ends = foreground_spans(decode_counts(rle["counts"].decode(), mask.shape))
    if starts.size == 0:
        assert not mask.any()
        return
    x0, y0, x1, y1 = tight_box(starts, ends, mask.shape[0])
    assert [x0, y0, x1 - x0, y1 - y0] == mask_util.toBbox(rle).tolist()


@given(masks)
def test_crop_is_the_mask_within_its_box(mask: np.ndarray) -> None:
    crop, (x, y) = decode_crop(encode(mask)["counts"], mask.shape)
    pasted = np.zeros_like(mask)
    pasted[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    assert np.array_equal(pasted, mask)
    assert crop.size == 0 or (crop.any(0)[[0, -1]].all() and crop.any(1)[[0, -1]].all())


def test_long_runs_decode() -> None:
    mask = np.zeros((3000, 3000), np.uint8)
    mask[100:2900, 50:2950] = 1
    mask[1500, 1500] = 0
    rle = encode(mask)
    assert decode_counts(rle["counts"], mask.shape).tolist() == runs_by_hand(mask)


def test_runs_of_length_zero_keep_the_mask() -> None:
    # 2 background, 1 foreground, 0 background, 1 foreground, 0 background: '0' + value below 16,
    # from the fourth run on the difference to the run before the last.
    text = "".join(chr(48 + code) for code in (2, 1, 0, 0, 0))
    assert decode_counts(text, (2, 2)).tolist() == [2, 1, 0, 1, 0]
    crop, corner = decode_crop(text, (2, 2))
    assert corner == (1, 0) and crop.tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("", "empty"),
        ("4~", "character 1 of counts is outside"),
        ("4/", "character 1 of counts is outside"),
        ("é", "not ASCII"),
        ("\ud800", "not ASCII"),
        ("P", "ends within a number"),
        ("3P", "ends within a number"),
        ("o" * 7 + "0", "too large"),
        ("A", "run 0 of counts is negative"),  # 17 = bit 4 set, sign-extended
        ("000O", "run 3 of counts is negative"),  # the run before the last is 0, the difference −1
        ("5", "exceed the 2×2"),
        ("3", "cover 3 of the 2×2"),
        ("ooooo?0", "exceed"),
    ],
)
def test_text_that_is_no_mask_is_refused(counts: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_counts(counts, (2, 2))


@given(st.text(alphabet=[chr(code) for code in range(47, 113)], max_size=40))
def test_any_text_ends_in_runs_of_the_size_or_in_an_error(text: str) -> None:
    try:
        runs = decode_counts(text, (5, 7))
    except ValueError:
        return
    assert runs.min() >= 0 and runs.sum() == 35
    assert mask_util.area({"size": [5, 7], "counts": text.encode()}) == runs[1::2].sum()
