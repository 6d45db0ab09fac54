"""Oracles: matplotlib's point-in-polygon for every pixel's centre; rings and areas by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.path import Path as Outline
from scipy import ndimage

from cellseg_d2.export.polygons import mask_polygons, signed_area

masks = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 1)
)


def rasterise(polygons: list[list[np.ndarray]], size: tuple[int, int]) -> np.ndarray:
    """How many polygons each pixel's centre lies in; holes are taken out."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    centers = np.stack([x.ravel(), y.ravel()], axis=1)
    count = np.zeros(size, int)
    for outer, *holes in polygons:
        inside = Outline(outer).contains_points(centers)
        for hole in holes:
            inside &= ~Outline(hole).contains_points(centers)
        count += inside.reshape(size)
    return count


@given(masks)
def test_the_pixels_in_the_polygons_are_the_mask(mask: np.ndarray) -> None:
    polygons = mask_polygons(mask)
    assert np.array_equal(rasterise(polygons, mask.shape), mask)
    assert sum(signed_area(ring) for rings in polygons for ring in rings) == mask.sum()


@given(masks)
def test_polygons_are_valid(mask: np.ndarray) -> None:
    """What Simple Feature Access asks: simple rings, connected interiors, one for each part."""
    polygons = mask_polygons(mask)
    components, count = ndimage.label(mask)
    assert len(polygons) == count
    for outer, *holes in polygons:
        assert signed_area(outer) > 0 and all(signed_area(hole) < 0 for hole in holes)
        for ring in (outer, *holes):
            assert len(np.unique(ring, axis=0)) == len(ring) >= 4
            steps = np.roll(ring, -1, axis=0) - ring
            assert (np.count_nonzero(steps, axis=1) == 1).all()  # along the edges of pixels
            turns = np.count_nonzero(steps + np.roll(steps, 1, axis=0), axis=1)
            assert (turns == 2).all()  # and no corner on a straight line
        inside = rasterise([[outer, *holes]], mask.shape) > 0
        assert len(np.unique(components[inside])) == 1


def test_rings_by_hand() -> None:
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], np.uint8)
    ((outer, hole),) = mask_polygons(mask, (10, 20))
    assert {tuple(p) for p in outer} == {(10, 20), (13, 20), (13, 23), (10, 23)}
    assert {tuple(p) for p in hole} == {(11, 21), (12, 21), (12, 22), (11, 22)}
    assert (signed_area(outer), signed_area(hole)) == (9, -1)


@pytest.mark.parametrize(
    ("rows", "areas"),
    [
        (["10", "01"], [[1], [1]]),  # parts that touch at a corner
        (["111", "101", "110"], [[8, -1]]),  # a hole that touches the outside at a corner
        (["11111", "10111", "11011", "11111"], [[20, -1, -1]]),  # holes that touch each other
        (["0110", "1001", "0110"], [[2], [1], [1], [2]]),  # parts that touch around a gap
    ],
)
def test_corners_do_not_join(rows: list[str], areas: list[list[float]]) -> None:
    mask = np.array([list(row) for row in rows]).astype(np.uint8)
    found = [[signed_area(ring) for ring in rings] for rings in mask_polygons(mask)]
    assert found == areas


@pytest.mark.parametrize("size", [(0, 0), (3, 4)])
def test_an_empty_mask_has_no_polygon(size: tuple[int, int]) -> None:
    assert mask_polygons(np.zeros(size, np.uint8)) == []
