"""Instances that are added to an input: their ids, and the label maps of their classes."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg_d2.data.augmentation import CellAugInput

WINDOW = (slice(2, 4), slice(3, 5))
MASK = np.array([[True, False], [True, True]])


def test_a_new_instance_joins_its_class() -> None:
    labels = np.zeros((6, 8), np.int32)
    labels[0, 0], labels[2, 3] = 7, 4
    given = {2: np.array([4, 7], np.int32)}
    sample = CellAugInput(np.zeros((6, 8, 3), np.uint8), [labels.copy()], [2], given)
    assert sample.add_instance(2, WINDOW, MASK) == 8
    expected = labels.copy()
    expected[2, 3] = expected[3, 3] = expected[3, 4] = 8
    assert np.array_equal(sample.label_maps[0], expected)
    assert sample.kept_ids[2].tolist() == [4, 7, 8]
    assert given[2].tolist() == [4, 7], "the data set's dict changed"


@pytest.mark.parametrize(("category", "order"), [(0, [0, 2, 3]), (1, [1, 2, 3]), (5, [2, 3, 5])])
def test_a_class_without_a_label_map_gets_one_in_its_place(category: int, order: list) -> None:
    maps = [np.full((6, 8), i, np.int32) for i in (20, 30)]
    sample = CellAugInput(np.zeros((6, 8, 3), np.uint8), list(maps), [2, 3], {2: [20], 3: [30]})
    assert sample.add_instance(category, WINDOW, MASK) == 1
    assert sample.categories == order
    layer = order.index(category)
    assert sample.label_maps[layer].dtype == np.int32
    assert np.array_equal(sample.label_maps[layer][WINDOW], MASK)
    assert sample.label_maps[layer].sum() == MASK.sum()
    assert sample.kept_ids[category].tolist() == [1]
    others = [m for i, m in enumerate(sample.label_maps) if i != layer]
    assert all(a is b for a, b in zip(others, maps, strict=True))


@pytest.mark.parametrize(("used", "free"), [([1, 2, 5], 3), ([2, 9], 1), ([1, 2, 3], 4), ([], 1)])
def test_after_the_largest_id_gaps_are_filled(used: list[int], free: int) -> None:
    labels = np.zeros((6, 8), np.int32)
    labels[0, : len(used) + 1] = [*used, 2**31 - 1]
    sample = CellAugInput(np.zeros((6, 8, 3), np.uint8), [labels], [0], {0: labels[0]})
    assert sample.add_instance(0, WINDOW, MASK) == free
