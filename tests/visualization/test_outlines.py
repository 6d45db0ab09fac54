"""Oracle: the mask itself, refilled pixel by pixel from the outlines by the even-odd rule."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.path import Path

from cellseg_d2.visualization.outlines import rle_outlines

masks = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.integers(0, 1)
)


def outlines_of(mask: np.ndarray) -> list[np.ndarray]:
    return rle_outlines(mask_util.encode(np.asfortranarray(mask)))


def refill(rings: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    ys, xs = np.indices(shape)
    centres = np.stack([xs.ravel() + 0.5, ys.ravel() + 0.5], axis=1)
    filled = np.zeros(len(centres), bool)
    for ring in rings:
        filled ^= Path(np.concatenate([ring, ring[:1]]), closed=True).contains_points(centres)
    return filled.reshape(shape)


def signed_area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


@given(masks)
def test_the_rings_enclose_exactly_the_mask(mask: np.ndarray) -> None:
    rings = outlines_of(mask)
    assert np.array_equal(refill(rings, mask.shape), mask.astype(bool))
    assert abs(sum(map(signed_area, rings))) == mask.sum()


def test_a_pixel_is_its_square() -> None:
    mask = np.zeros((5, 7), np.uint8)
    mask[3, 4] = 1
    (ring,) = outlines_of(mask)
    assert sorted(map(tuple, ring)) == [(4, 3), (4, 4), (5, 3), (5, 4)]


def test_a_rectangle_has_four_corners() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[2:7, 1:9] = 1
    (ring,) = outlines_of(mask)
    assert sorted(map(tuple, ring)) == [(1, 2), (1, 7), (9, 2), (9, 7)]


def test_a_hole_is_a_ring_of_its_own() -> None:
    mask = np.ones((5, 5), np.uint8)
    mask[2, 2] = 0
    rings = outlines_of(mask)
    assert sorted(abs(signed_area(ring)) for ring in rings) == [1, 25]
    assert signed_area(rings[0]) * signed_area(rings[1]) < 0


def test_an_empty_mask_has_no_outline() -> None:
    assert outlines_of(np.zeros((4, 4), np.uint8)) == []
