"""Backward maps against SciPy, OpenCV and products of matrices."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from cellseg_d2.data.augmentation.warp_maps import (
    AffineMap,
    GridMap,
    LensMap,
    PixelMap,
    compose,
    elastic_map,
    kernel_radius,
    pixel_grid,
    smooth_in_place,
)

SIZE = (40, 60)


def affine(rng: np.random.Generator) -> AffineMap:
    matrix = np.eye(3)
    matrix[:2, :2] += rng.normal(0, 0.2, (2, 2))
    matrix[:2, 2] = rng.normal(0, 5, 2)
    return AffineMap(matrix, SIZE)


def full(points: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return np.stack(np.broadcast_arrays(*points))


def test_affine_maps_compose_to_the_product_of_their_matrices() -> None:
    rng = np.random.default_rng(0)
    first, second, third = (affine(rng) for _ in range(3))
    both = compose([first, second, third])
    assert isinstance(both, AffineMap)
    assert np.allclose(both.matrix, first.matrix @ second.matrix @ third.matrix)


@pytest.mark.parametrize("order", ["elastic last", "elastic first", "two dense"])
def test_maps_compose_from_the_last_to_the_first(order: str) -> None:
    rng = np.random.default_rng(1)
    turn = affine(rng)
    bend = elastic_map(SIZE, 20, 3, seed=0)
    grid = GridMap(rng.uniform(0.7, 1.3, 5), rng.uniform(0.7, 1.3, 5), SIZE)
    steps: list[PixelMap] = {
        "elastic last": [turn, bend],
        "elastic first": [bend, turn],
        "two dense": [grid, turn, bend],
    }[order]
    points = compose(steps)
    assert not isinstance(points, AffineMap)
    expected = tuple(np.mgrid[:40, :60][::-1].astype(np.float64))
    for step in reversed(steps):
        if step is bend:
            shifts = [
                map_coordinates(s.astype(float), expected[::-1], order=1, mode="mirror")
                for s in (bend.shift_x, bend.shift_y)
            ]
            expected = (expected[0] + shifts[0], expected[1] + shifts[1])
        else:
            expected = step(*expected)
    # Older OpenCV interpolates at 1/32 of a pixel; displacements change by .4 pixels per pixel.
    assert np.abs(full(points) - full(expected)).max() < 0.02
    assert all(p.dtype == np.float32 and p.flags.c_contiguous for p in points)


def test_flips_keep_a_grid_distortion_separable() -> None:
    flip = AffineMap(np.array([[-1.0, 0, 59], [0, 1, 0], [0, 0, 1]]), SIZE)
    x, y = flip(*pixel_grid(SIZE))
    assert x.shape == (1, 60) and y.shape == (40, 1)
    assert np.array_equal(x[0], np.arange(60)[::-1])


def test_grid_stretches_each_band_by_its_factor() -> None:
    factors = np.array([0.7, 1.3, 1.0, 0.9, 1.1])
    x, y = GridMap(factors, np.ones(5), (50, 50))(*pixel_grid((50, 50)))
    # Within a band of ten pixels neighbours are a factor apart; the first band starts at the edge.
    steps = np.diff(x[0].astype(np.float64))
    for band, factor in enumerate(factors):
        assert np.allclose(steps[10 * band : 10 * band + 9], factor, atol=1e-4)
    assert x[0, 0] == pytest.approx(0.5 * 0.7 - 0.5)
    assert np.allclose(y[:, 0], np.arange(50), atol=1e-4)
    beyond, _ = GridMap(factors, np.ones(5), (50, 50))(
        np.array([[-100.5, 149.5]], np.float32), np.zeros((1, 1), np.float32)
    )
    assert np.allclose(beyond, [[-70.5, 50 + 110 - 0.5]], atol=1e-3)


@pytest.mark.parametrize("strength", [-2.0, -0.3, 0.0, 2.0])
def test_lens_equals_opencvs_camera_model(strength: float) -> None:
    height, width = SIZE
    camera = np.array([[width, 0, (width - 1) / 2], [0, height, (height - 1) / 2], [0, 0, 1]])
    expected = cv2.initUndistortRectifyMap(
        camera,
        np.array([strength, strength, 0, 0, 0]),
        np.eye(3),
        camera,
        (width, height),
        cv2.CV_32FC1,
    )
    found = LensMap(strength, (0.0, 0.0), SIZE)(*pixel_grid(SIZE))
    assert np.allclose(full(found), full(expected), atol=1e-3)
    shifted = LensMap(strength, (2.0, -1.0), SIZE)(*pixel_grid(SIZE))
    difference = full(shifted) - full(found)
    assert np.allclose(difference[0], 2, atol=1e-4) and np.allclose(difference[1], -1, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 6.0, 12.0])
def test_smoothing_equals_scipy(sigma: float) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 100, 135)).astype(np.float32)
    smoothed = noise.copy()
    smooth_in_place(smoothed, sigma)
    for field, smooth in zip(noise, smoothed, strict=True):
        expected = gaussian_filter(field.astype(np.float64), sigma, mode="wrap", truncate=4)
        assert np.abs(smooth - expected).max() < 1e-5


@pytest.mark.parametrize(("alpha", "sigma"), [(30.0, 12.0), (120.0, 6.0)])
def test_elastic_displacements_are_as_large_as_theory_says(alpha: float, sigma: float) -> None:
    bend = elastic_map((600, 500), alpha, sigma, seed=3)
    expected = alpha / (2 * math.sqrt(3 * math.pi) * sigma)
    for shift in (bend.shift_x, bend.shift_y):
        assert shift.std() == pytest.approx(expected, rel=0.15)
        # At the border as in the middle, and opposite borders have nothing to do with each other.
        border = np.concatenate([shift[0], shift[-1], shift[:, 0], shift[:, -1]])
        assert border.std() == pytest.approx(expected, rel=0.3)
        assert abs(np.corrcoef(shift[0], shift[-1])[0, 1]) < 0.6
    assert abs(np.corrcoef(bend.shift_x.ravel(), bend.shift_y.ravel())[0, 1]) < 0.2


def test_elastic_map_repeats_with_its_seed_on_any_number_of_threads() -> None:
    threads = cv2.getNumThreads()
    try:
        fields = []
        for count in (0, 2):
            cv2.setNumThreads(count)
            fields.append(elastic_map((90, 70), 120, 6, seed=5).shift_x)
    finally:
        cv2.setNumThreads(threads)
    assert np.array_equal(*fields)
    assert not np.array_equal(fields[0], elastic_map((90, 70), 120, 6, seed=6).shift_x)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (33, 35)])
def test_elastic_map_of_images_smaller_than_its_kernel(size: tuple[int, int]) -> None:
    bend = elastic_map(size, 120, 12, seed=0)
    assert bend.size == size and kernel_radius(12) == 48
    assert np.isfinite(bend.shift_x).all() and np.abs(bend.shift_x).max() > 0
