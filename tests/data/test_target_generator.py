"""Centre and boundary maps against SciPy written out per instance, and small cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_d2.data.dataset_mapper import build_instances
from cellseg_d2.data.synthetic import make_label_map
from cellseg_d2.data.target_generator import (
    CenterBoundaryTargets,
    boundary_map,
    center_map,
    merge_layers,
)
from cellseg_d2.structures import LabelMasks


def masks_of(*label_maps: np.ndarray) -> LabelMasks:
    """All ids of all maps, one map a class."""
    kept = {i: np.unique(m[m > 0]) for i, m in enumerate(label_maps)}
    size = label_maps[0].shape
    return build_instances(list(label_maps), list(kept), kept, size).gt_masks


def written_out(masks: LabelMasks, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """The definition: each instance's visible mask by itself, through SciPy."""
    order = np.lexsort((masks.ids.numpy(), masks.layers.numpy()))
    merged = np.zeros(masks.image_size, int)
    for number, index in enumerate(order, 1):
        merged[masks.label_maps[masks.layers[index]].numpy() == int(masks.ids[index])] = number
    points = np.zeros(masks.image_size)
    boundary = np.zeros(masks.image_size, bool)
    for number in range(1, len(order) + 1):
        mask = merged == number
        if not mask.any():
            continue
        y, x = ndi.center_of_mass(mask)
        points[int(y), int(x)] = 1
        boundary = np.maximum(boundary, ndi.binary_dilation(mask) ^ ndi.binary_erosion(mask))
    center = ndi.gaussian_filter(points, sigma)
    return center / center.max() if points.any() else center, boundary


def assert_equals_definition(masks: LabelMasks, sigma: float) -> None:
    found = CenterBoundaryTargets(sigma)(masks)
    center, boundary = written_out(masks, sigma)
    assert found["center_map"].dtype == torch.float32
    assert found["boundary_map"].dtype == torch.uint8
    np.testing.assert_allclose(found["center_map"].numpy(), center, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found["boundary_map"].numpy(), boundary)


def scattered(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Rectangles over each other: touching, cut in pieces, at the border; ids far apart."""
    labels = np.zeros(size, np.int32)
    for _ in range(cells):
        y, x = rng.integers(-3, size[0]), rng.integers(-3, size[1])
        height, width = rng.integers(1, 12, 2)
        labels[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = rng.integers(
            1, 2**31 - 1
        )
    return labels


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.lists(st.integers(0, 15), min_size=1, max_size=4),
    st.sampled_from([0.1, 0.7, 2.5, 5.0]),
)
def test_equals_the_definition(
    seed: int, size: tuple[int, int], cells: list[int], sigma: float
) -> None:
    rng = np.random.default_rng(seed)
    assert_equals_definition(masks_of(*[scattered(rng, size, n) for n in cells]), sigma)


def test_equals_the_definition_on_a_dense_image() -> None:
    labels = make_label_map(np.random.default_rng(0), (200, 260), 60)
    assert_equals_definition(masks_of(labels, np.roll(labels, 9, axis=1)), 5.0)


def test_a_square_of_three() -> None:
    labels = np.zeros((7, 7), np.int32)
    labels[2:5, 2:5] = 8
    expected = [
        "0000000",
        "0011100",  # dilated into
        "0111110",
        "0110110",  # only the middle is left by the erosion
        "0111110",
        "0011100",
        "0000000",
    ]
    found = CenterBoundaryTargets(1.0)(masks_of(labels))
    assert ["".join(map(str, row)) for row in found["boundary_map"].tolist()] == expected
    assert np.argmax(found["center_map"].numpy()) == 3 * 7 + 3


def test_touching_cells_have_a_boundary_two_pixels_wide_between_them() -> None:
    labels = np.zeros((9, 12), np.int32)
    labels[:, :6], labels[:, 6:] = 1, 2
    marked = boundary_map(labels)
    assert marked[4].tolist() == [1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]


def test_the_erosion_eats_at_the_border_of_the_image() -> None:
    labels = np.zeros((5, 6), np.int32)
    labels[:3, :3] = 1
    expected = ["111100", "101100", "111100", "111000", "000000"]
    assert ["".join(map(str, row)) for row in boundary_map(labels).tolist()] == expected


def test_one_pixel() -> None:
    labels = np.zeros((5, 5), np.int32)
    labels[1, 3] = 1
    found = CenterBoundaryTargets(1.0)(masks_of(labels))
    expected = ndi.binary_dilation(labels).astype(int)
    assert found["boundary_map"].tolist() == expected.tolist()
    assert found["center_map"][1, 3] == 1


def test_a_centre_is_truncated_to_whole_pixels() -> None:
    labels = np.zeros((9, 9), np.int32)
    labels[2:6, 3:5] = 1  # centre of mass at (3.5, 3.5)
    _, centers = merge_layers(masks_of(labels))
    assert centers.tolist() == [[3, 3]]


def test_the_blur_of_one_centre_is_the_gaussian() -> None:
    y, x = np.mgrid[-30:31, -30:31]
    inside = (abs(y) <= 20) & (abs(x) <= 20)  # 4 sigma
    expected = np.exp(-(y**2 + x**2) / 50) * inside
    found = center_map(np.array([[30, 30]]), (61, 61), 5.0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_two_instances_with_one_centre_count_once() -> None:
    ring, middle = np.zeros((21, 21), np.int32), np.zeros((21, 21), np.int32)
    ring[6:15, 6:15] = 3
    middle[9:12, 9:12] = 3
    alone, both = (CenterBoundaryTargets()(masks_of(*m)) for m in ((ring,), (ring, middle)))
    assert torch.equal(alone["center_map"], both["center_map"])
    assert both["boundary_map"].sum() > alone["boundary_map"].sum()


def test_a_later_class_covers_an_earlier_one() -> None:
    first, second = np.zeros((4, 8), np.int32), np.zeros((4, 8), np.int32)
    first[:, :6] = 5
    second[:, 4:] = 5
    merged, centers = merge_layers(masks_of(first, second))
    assert merged[0].tolist() == [2, 2, 2, 2, 1, 1, 1, 1]
    assert centers.tolist() == [[1, 5], [1, 1]]
    merged, centers = merge_layers(masks_of(second, first))
    assert merged[0].tolist() == [1, 1, 1, 1, 1, 1, 2, 2]
    assert centers.tolist() == [[1, 2], [1, 6]]


def test_a_covered_instance_leaves_nothing() -> None:
    small, large = np.zeros((30, 30), np.int32), np.zeros((30, 30), np.int32)
    small[4:7, 4:7] = 1
    large[:20, :20] = 1
    covered, alone = (CenterBoundaryTargets()(masks_of(*m)) for m in ((small, large), (large,)))
    assert all(torch.equal(covered[name], alone[name]) for name in alone)


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 2, 0], [1]])
def test_the_order_of_the_instances_does_not_matter_but_which_they_are(order: list[int]) -> None:
    labels = np.zeros((20, 30), np.int32)
    labels[2:8, 2:9], labels[2:8, 9:15], labels[12:, 20:] = 70, 4, 900
    masks = masks_of(labels)
    found = CenterBoundaryTargets(1.0)(masks[order])
    kept = np.where(np.isin(labels, np.array([4, 70, 900])[order]), labels, 0)
    expected = CenterBoundaryTargets(1.0)(masks_of(kept))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_image_without_instances_is_all_zero() -> None:
    found = CenterBoundaryTargets()(build_instances([], [], {}, (5, 7)).gt_masks)
    assert found["center_map"].shape == found["boundary_map"].shape == (5, 7)
    assert not found["center_map"].any() and not found["boundary_map"].any()


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_sigma_that_is_none_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma above 0"):
        CenterBoundaryTargets(sigma)
