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
    a, b, c = np.zeros((3, *SIZE))
    a[:10], b[10:20], c[20:30] = 1, 1, 1
    masks = [a, np.zeros(SIZE), b, c]
    instances = make_instances(masks, [0.9, 0.8, 0.5, 0.4], [0, 1, 2, 3], SIZE)
    assert select_cells(instances, 0.5).pred_classes.tolist() == [0, 2]
    assert select_cells(instances, 0.0).pred_classes.tolist() == [0, 2, 3]


def test_a_cell_of_two_classes_is_shown_as_the_surer_one() -> None:
    a, b = np.zeros((2, *SIZE))
    a[:10], b[2:11] = 1, 1  # 8 of its 9 rows are the other's
    instances = make_instances([b, a], [0.6, 0.7], [0, 1], SIZE)
    assert select_cells(instances, 0.5).pred_classes.tolist() == [1]


def test_more_cells_than_a_byte_counts() -> None:
    masks = np.eye(300).reshape(300, 15, 20)
    instances = make_instances(list(masks), [0.9] * 300, [0] * 300, (15, 20))
    assert len(list(iter_cells(select_cells(instances, 0.5)))) == 300


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_no_cells(threshold: float) -> None:
    nothing = select_cells(make_instances([], [], [], SIZE), threshold)
    assert len(nothing) == 0 and list(iter_cells(nothing)) == []
