"""Oracle: ``pycocotools.mask.encode`` on the bitmaps that the runs were read off."""

import numpy as np
import pycocotools.mask as mask_util
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellseg_d2.structures.runs import PixelRuns


def runs_of(masks: np.ndarray) -> PixelRuns:
    """Read the runs of (N, H, W) bitmaps, one pixel after the other."""
    starts, ends, offsets = [], [], [0]
    for mask in masks:
        previous = 0
        for position, pixel in enumerate(mask.ravel(order="F").tolist() + [0]):
            if pixel and not previous:
                starts.append(position)
            if previous and not pixel:
                ends.append(position)
            previous = pixel
        offsets.append(len(starts))
    numbers = (np.array(part, dtype=np.int64) for part in (starts, ends, offsets))
    return PixelRuns(*numbers, image_size=masks.shape[1:])


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)))
def test_random_bitmaps_share_one_compression(masks):
    assert runs_of(masks).rles() == [mask_util.encode(np.asfortranarray(mask)) for mask in masks]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=12))
def test_counts_of_any_length(lengths):
    # One row is one column-major sequence, so that counts can be chosen at will.
    mask = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)[None]
    bounds = np.cumsum(lengths)
    runs = PixelRuns(
        bounds[0 : len(lengths) - 1 : 2],
        bounds[1::2],
        np.array([0, len(lengths) // 2]),
        (1, mask.shape[1]),
    )
    assert runs.rles() == [mask_util.encode(np.asfortranarray(mask))]


def test_empty_instances_between_others():
    masks = np.zeros((5, 4, 6), dtype=bool)
    masks[1, 2:, 3] = masks[3, :, :] = True
    runs = runs_of(masks)
    assert len(runs) == 5
    assert runs.rles() == [mask_util.encode(np.asfortranarray(mask)) for mask in masks]


def test_no_instances():
    assert runs_of(np.zeros((0, 4, 6), dtype=bool)).rles() == []
