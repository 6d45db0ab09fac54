"""One image: shapes, sizes and counts at the edge, refusals, and the same bytes each time."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg_d2.data.synthetic import make_image


def test_shapes_and_types():
    image, label_maps = make_image(np.random.default_rng(0), (110, 120), 12)
    assert image.shape == (110, 120, 3) and image.dtype == np.uint8
    assert label_maps.shape == (4, 110, 120) and label_maps.dtype == np.int32


def test_same_state_same_bytes():
    first = make_image(np.random.default_rng(11), (120, 90), 12)
    second = make_image(np.random.default_rng(11), (120, 90), 12)
    other = make_image(np.random.default_rng(12), (120, 90), 12)
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()
    assert first[0].tobytes() != other[0].tobytes()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 35), (1100, 3)])
def test_odd_sizes(size):
    image, label_maps = make_image(np.random.default_rng(0), size, 5)
    assert image.shape == (*size, 3) and label_maps.shape == (4, *size)
    assert label_maps.any()


def test_no_cells():
    image, label_maps = make_image(np.random.default_rng(0), (80, 90), 0)
    assert not label_maps.any()
    assert image.std() > 1  # tissue is there


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": (0, 5)},
        {"num_cells": -1},
        {"class_weights": (1, 1, 1)},
        {"class_weights": (0, 0, 0, 0)},
        {"class_weights": (1, -1, 1, 1)},
        {"class_weights": (1, float("nan"), 1, 1)},
        {"scale": 0.0},
        {"overlap": 1.5},
    ],
)
def test_refuses_arguments_out_of_range(arguments):
    values = {"size": (20, 20), "num_cells": 1, **arguments}
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make_image(np.random.default_rng(0), **values)
