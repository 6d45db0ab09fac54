"""Oracles: ``pycocotools.mask``, which writes the text, and the runs that it was written from."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellseg_d2.data.synthetic import make_label_map
from cellseg_d2.structures import encode_label_map
from cellseg_d2.structures.run_decoding import decode_runs


def encode(mask: np.ndarray) -> dict:
    return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=8)))
def test_random_bitmaps(masks):
    rles = [encode(mask) for mask in masks]
    runs = decode_runs(rles, masks.shape[1:])
    assert len(runs) == len(masks)
    assert runs.rles() == rles
    for i, mask in enumerate(masks):
        pixels = np.zeros(mask.size, dtype=bool)
        for k in range(runs.offsets[i], runs.offsets[i + 1]):
            pixels[runs.starts[k] : runs.ends[k]] = True
        assert np.array_equal(pixels, mask.ravel(order="F"))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=12).filter(sum))
def test_counts_of_any_length_and_of_none(lengths):
    """Runs without a pixel, which pycocotools keeps in the text, are joined."""
    rle = mask_util.frPyObjects({"size": [1, sum(lengths)], "counts": lengths}, 1, sum(lengths))
    mask = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    runs = decode_runs([rle, rle], (1, sum(lengths)))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]]).astype(int)))
    assert runs.starts.tolist() == 2 * edges[0::2].tolist()
    assert runs.ends.tolist() == 2 * edges[1::2].tolist()
    assert runs.offsets.tolist() == [0, len(edges) // 2, len(edges)]


def test_dense_image_gives_the_runs_it_was_written_from():
    runs = encode_label_map(make_label_map(np.random.default_rng(0), (300, 400), 150)).runs
    found = decode_runs(runs.rles(), (300, 400))
    for name in ("starts", "ends", "offsets"):
        assert np.array_equal(getattr(found, name), getattr(runs, name))


def test_text_and_bytes_are_the_same():
    rle = encode(np.eye(5))
    text = {"size": [5, 5], "counts": rle["counts"].decode()}
    assert decode_runs([rle], (5, 5)).rles() == decode_runs([text], (5, 5)).rles()


def test_no_instances():
    runs = decode_runs([], (4, 6))
    assert len(runs) == 0 and len(runs.starts) == 0 and runs.image_size == (4, 6)


GOOD = encode(np.eye(5))["counts"]


@pytest.mark.parametrize(
    "counts",
    [b"", b"!", GOOD[:-1], GOOD + b"0", GOOD + b"P", b"o" * 20 + b"0", b"\x80", "é", b"O0" + GOOD],
)
def test_refuses_what_is_no_mask_of_the_size(counts):
    good = {"size": [5, 5], "counts": GOOD}
    with pytest.raises(ValueError):
        decode_runs([good, {"size": [5, 5], "counts": counts}, good], (5, 5))


def text(numbers: list[int]) -> bytes:
    """COCO's text of numbers of five bits each, with a sixth where one goes on."""
    marks = []
    for number in numbers:
        while True:
            bits, number = number & 31, number >> 5
            is_done = number == (-1 if bits & 16 else 0)
            marks.append(bits + 48 + (0 if is_done else 32))
            if is_done:
                break
    return bytes(marks)


def test_the_faulty_one_is_named():
    # Counts 12, -4, 2 and 0, which add up to the ten pixels; the fourth is told from the second.
    faulty = {"size": [2, 5], "counts": text([12, -4, 2, 0 - -4])}
    good = {"size": [2, 5], "counts": text([10])}
    decode_runs([good, good], (2, 5))
    for place in range(3):
        rles = [good] * place + [faulty] + [good] * (2 - place)
        with pytest.raises(ValueError, match=f"counts of RLE {place} do not cover"):
            decode_runs(rles, (2, 5))


def test_refuses_another_size_and_uncompressed_counts():
    with pytest.raises(ValueError, match="RLE 0 is of size"):
        decode_runs([encode(np.eye(5))], (5, 6))
    with pytest.raises(TypeError, match="list"):
        decode_runs([{"size": [2, 2], "counts": [0, 4]}], (2, 2))
