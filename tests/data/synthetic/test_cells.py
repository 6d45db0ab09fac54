"""The form of one cell, against the ellipse and the sizes it is drawn for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cellseg_d2.data.synthetic.cells import KINDS, Cell, draw_cell


def ellipse(major: float, minor: float, angle: float) -> Cell:
    still = np.zeros(4, np.float32)
    return Cell(0, major, minor, angle, 0.0, 0.0, still, still, shade=1.0, centre=(3.25, 7.5))


def test_radius_along_and_across():
    cell = ellipse(12.0, 5.0, 0.3)
    assert cell.radius(0.3) == pytest.approx(12)
    assert cell.radius(0.3 + math.pi / 2) == pytest.approx(5)


def test_distance_to_a_disc_is_exact():
    cell = ellipse(10.0, 10.0, 0.7)
    (top, left), along, across = cell.local_axes(3.0)
    rows, columns = np.indices(along.shape)
    expected = 10 - np.hypot(rows + top - 3.25, columns + left - 7.5)
    np.testing.assert_allclose(cell.distance(along, across), expected, atol=1e-3)


def test_outline_lies_at_the_radius():
    cell = ellipse(12.0, 5.0, 0.3)
    (top, left), along, across = cell.local_axes(3.0)
    rows, columns = np.indices(along.shape)
    y, x = rows + top - 3.25, columns + left - 7.5
    inside = [
        math.hypot(a, b) < cell.radius(math.atan2(a, b))
        for a, b in zip(y.ravel(), x.ravel(), strict=True)
    ]
    np.testing.assert_array_equal(cell.distance(along, across).ravel() > 0, inside)


@pytest.mark.parametrize("category", range(4))
def test_window_holds_the_whole_cell(category):
    for seed in range(20):
        cell = draw_cell(np.random.default_rng(seed), category, 1.0)
        _, along, across = cell.local_axes(0.0)
        inside = cell.distance(along, across) > 0
        assert inside.any()
        assert not (inside[[0, -1]].any() or inside[:, [0, -1]].any())


@pytest.mark.parametrize("category", range(4))
def test_areas_are_those_drawn_for(category):
    roots = []
    for seed in range(60):
        cell = draw_cell(np.random.default_rng(seed), category, 1.0)
        _, along, across = cell.local_axes(0.0)
        roots.append(math.sqrt((cell.distance(along, across) > 0).sum()))
    assert np.median(roots) == pytest.approx(KINDS[category].size, rel=0.05)
