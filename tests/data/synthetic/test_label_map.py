"""A label map alone holds each id, and its cells touch."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg_d2.data.synthetic import make_label_map


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((1000, 1000), 600),
        ((200, 300), 1),
        ((40, 50), 2000),
        ((97, 83), 6000),
        ((50, 2), 99),
        ((7, 90), 30),
        ((5, 5), 0),
    ],
)
def test_label_map_holds_each_id(size, count):
    label_map = make_label_map(np.random.default_rng(1), size, count)
    assert label_map.shape == size and label_map.dtype == np.int32
    np.testing.assert_array_equal(np.unique(label_map[label_map > 0]), np.arange(1, count + 1))


def test_label_map_cells_touch():
    label_map = make_label_map(np.random.default_rng(1), (300, 300), 60)
    beside = (label_map[:, 1:] != label_map[:, :-1]) & (label_map[:, 1:] * label_map[:, :-1] > 0)
    assert beside.sum() > 100


def test_label_map_without_room():
    with pytest.raises(ValueError, match="do not fit"):
        make_label_map(np.random.default_rng(0), (3, 3), 10)
