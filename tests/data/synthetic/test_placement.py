"""Placement: which cells touch, overlap or are cut, and how ids are counted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from cellseg_d2.data.synthetic import CLASS_WEIGHTS
from cellseg_d2.data.synthetic.placement import place_cells


def place(size, count, *, seed, class_weights=CLASS_WEIGHTS, scale=1.0, overlap=0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return place_cells(rng, size, count, class_weights, scale, overlap)[1]


@pytest.fixture(scope="module")
def crowded() -> np.ndarray:
    return place((500, 520), 190, seed=0)


def test_ids_run_on_across_classes_without_gaps(crowded):
    ids = [np.unique(label_map[label_map > 0]) for label_map in crowded]
    joined = np.concatenate(ids)
    assert len(joined) > 180
    np.testing.assert_array_equal(joined, np.arange(1, len(joined) + 1))


@pytest.mark.parametrize("seed", range(4))
def test_a_cell_painted_over_completely_leaves_no_id(seed):
    cells, label_maps = place_cells(
        np.random.default_rng(seed), (60, 60), 150, (1, 1, 0, 0), scale=1.0, overlap=1.0
    )
    ids = np.concatenate([np.unique(m[m > 0]) for m in label_maps])
    assert len(cells) > len(ids)  # some were painted over, or the test would show nothing
    np.testing.assert_array_equal(ids, np.arange(1, len(ids) + 1))


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_sizes_are_the_released_medians(scale):
    for category, expected in enumerate((26, 17, 24, 45)):
        label_maps = place(
            (round(900 * scale), round(900 * scale)),
            70,
            seed=category,
            class_weights=np.eye(4)[category],
            scale=scale,
            overlap=0.0,
        )
        label_map = label_maps[category].copy()
        border = np.unique(
            np.concatenate([label_map[[0, -1]].ravel(), label_map[:, [0, -1]].ravel()])
        )
        areas = np.bincount(label_map.ravel())[1:]
        whole = np.setdiff1d(np.arange(1, len(areas) + 1), border)
        assert np.median(np.sqrt(areas[whole - 1])) == pytest.approx(expected * scale, rel=0.06)


def test_only_the_third_class_is_elongated():
    ratios = []
    for category in range(4):
        label_maps = place((600, 600), 30, seed=1, class_weights=np.eye(4)[category], overlap=0.0)
        label_map = label_maps[category]
        of_class = []
        for index in range(1, label_map.max() + 1):
            y, x = np.nonzero(label_map == index)
            if min(y.min(), x.min()) > 0 and max(y.max(), x.max()) < 599:
                small, large = np.linalg.eigvalsh(np.cov(np.stack([y, x])))
                of_class.append(np.sqrt(large / small))
        ratios.append(np.median(of_class))
    assert ratios[2] > 2 > 1.7 > max(ratios[0], ratios[1], ratios[3])


def test_many_cells_touch_and_some_overlap_across_classes(crowded):
    count = int(crowded.max())
    touching = set()
    for index in range(1, count + 1):
        category = next(c for c in range(4) if (crowded[c] == index).any())
        grown = ndimage.binary_dilation(crowded[category] == index)
        neighbours = np.unique(crowded[:, grown])
        if len(neighbours[(neighbours > 0) & (neighbours != index)]):
            touching.add(index)
    assert len(touching) > 0.5 * count
    shared = (crowded > 0).sum(axis=0) > 1
    assert 0 < shared.mean() < 0.1


def test_some_cells_are_cut_in_two():
    label_maps = place((500, 500), 60, seed=2, class_weights=(0, 0, 1, 0))
    parts = [
        ndimage.label(label_maps[2] == index)[1] for index in range(1, label_maps[2].max() + 1)
    ]
    assert 1 <= sum(n > 1 for n in parts) <= 0.2 * len(parts)


def test_overlap_bounds_what_is_hidden():
    """At 0 no pixel is shared; without it, more are."""
    apart = place((400, 400), 120, seed=4, overlap=0.0)
    near = place((400, 400), 120, seed=4, overlap=0.4)
    assert not ((apart > 0).sum(axis=0) > 1).any()
    assert ((near > 0).sum(axis=0) > 1).any()
    assert all(ndimage.label(apart[2] == i)[1] == 1 for i in np.unique(apart[2])[1:])


def test_class_weights_choose_the_classes():
    label_maps = place((300, 300), 40, seed=0, class_weights=(0, 3, 0, 1))
    present = [bool(label_map.any()) for label_map in label_maps]
    assert present == [False, True, False, True]
