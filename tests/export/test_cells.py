"""Oracle: the masks that the answer was made of."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg_d2.export.cells import iter_cells, select_cells

from .answers import discs, make_instances

SIZE = (40, 50)


def test_cells_are_numbered_and_hold_their_masks() -> None:
    instances = discs(np.random.default_rng(0), 12, SIZE)
    cells = list(iter_cells(instances, 5))
    assert [cell.id for cell in cells] == list(range(5, 17))
    assert [cell.category for cell in cells] == instances.pred_classes.tolist()
    assert [cell.score for cell in cells] == instances.scores.tolist()
    for cell, mask in zip(cells, instances.pred_masks, strict=True):
        (height, width), (x, y) = cell.mask.shape, cell.corner
        pasted = np.zeros(SIZE, bool)
        pasted[y : y + height, x : x + width] = cell.mask
        assert np.array_equal(pasted, mask.numpy())


def test_unsure_and_empty_ones_are_left_out() -> None:
    full, empty = np.ones(SIZE), np.zeros(SIZE)
    instances = make_instances([full, empty, full, full], [0.9, 0.8, 0.5, 0.4], [0, 1, 2, 3], SIZE)
    assert select_cells(instances, 0.5).pred_classes.tolist() == [0, 2]
    assert select_cells(instances, 0.0).pred_classes.tolist() == [0, 2, 3]


def test_more_cells_than_a_byte_counts() -> None:
    mask = np.ones((3, 3))
    instances = make_instances([mask] * 300, [0.9] * 300, [0] * 300, (3, 3))
    assert len(list(iter_cells(select_cells(instances, 0.5)))) == 300


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_no_cells(threshold: float) -> None:
    nothing = select_cells(make_instances([], [], [], SIZE), threshold)
    assert len(nothing) == 0 and list(iter_cells(nothing)) == []
