"""Filters equal OpenCV called by hand; the noise has the moments of a normal distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from scipy import stats

from cellseg_d2.data.augmentation.filters import (
    CLAHE,
    CLAHETransform,
    GaussianBlur,
    GaussianBlurTransform,
    GaussianNoise,
    GaussianNoiseTransform,
    MedianBlur,
    MedianBlurTransform,
)


def smooth_image(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


@pytest.mark.parametrize("clip_limit", [1.0, 2.5, 4.0])
def test_clahe_is_opencv_on_the_lightness(clip_limit: float) -> None:
    image = smooth_image(120, 150)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    clahe = cv2.createCLAHE(clipLimit=clip_limit, tileGridSize=(8, 8))
    lab[..., 0] = clahe.apply(lab[..., 0].copy())
    expected = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    assert np.array_equal(CLAHETransform(clip_limit).apply_image(image), expected)


def test_clahe_of_more_clip_has_more_contrast() -> None:
    image = smooth_image(200, 200) // 4 + 90
    low, high = (CLAHETransform(clip).apply_image(image).std() for clip in (1.0, 4.0))
    assert image.std() < low < high


@pytest.mark.parametrize(("kernel", "sigma"), [(3, 0.0), (7, 0.0), (3, 0.1), (3, 1.0)])
def test_gaussian_blur_is_the_kernel_written_out(kernel: int, sigma: float) -> None:
    image = smooth_image(40, 50)
    used = sigma or 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    offsets = np.arange(kernel) - kernel // 2
    line = np.exp(-(offsets**2) / (2 * used**2))
    weights = np.outer(line, line) / line.sum() ** 2
    reach = kernel // 2
    padded = np.pad(image.astype(float), [(reach, reach), (reach, reach), (0, 0)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(0, 1))
    expected = np.einsum("yxcij,ij->yxc", windows, weights)
    blurred = GaussianBlurTransform(kernel, sigma).apply_image(image)
    # OpenCV's 8-bit kernels are in fixed point, and its sizes 3 to 7 at sigma 0 are binomial.
    assert np.abs(blurred - expected).max() <= 4
    assert np.abs(blurred - expected).mean() < 0.8


@pytest.mark.parametrize("kernel", [3, 5])
def test_median_blur_is_the_median(kernel: int) -> None:
    image = smooth_image(30, 40)
    windows = np.lib.stride_tricks.sliding_window_view(image, (kernel, kernel), axis=(0, 1))
    reach = kernel // 2
    blurred = MedianBlurTransform(kernel).apply_image(image)[reach:-reach, reach:-reach]
    assert np.array_equal(blurred, np.median(windows, axis=(3, 4)))


@pytest.mark.parametrize("sigma", [10**0.5, 5.1, 50**0.5])
def test_noise_has_the_moments_of_a_normal_distribution(sigma: float) -> None:
    image = np.full((500, 400, 3), 128, np.uint8)
    noise = GaussianNoiseTransform(sigma, seed=7).apply_image(image).astype(int) - 128
    count = noise.size
    # Rounding to whole levels adds 1/12 to the variance; four standard errors of each estimate.
    variance = sigma**2 + 1 / 12
    assert abs(noise.mean()) < 4 * (variance / count) ** 0.5
    assert abs(noise.var() / variance - 1) < 4 * (2 / count) ** 0.5 + 5e-4
    assert abs(stats.skew(noise.ravel())) < 4 * (6 / count) ** 0.5
    assert abs(stats.kurtosis(noise.ravel())) < 4 * (24 / count) ** 0.5 + 0.01
    # Each level as often as the distribution says, over all of them.
    levels = np.arange(-8, 9)
    expected = stats.norm.cdf((levels + 0.5) / sigma) - stats.norm.cdf((levels - 0.5) / sigma)
    share = np.array([(noise == level).mean() for level in levels])
    assert np.all(np.abs(share - expected) < 4 * (expected / count) ** 0.5 + 2e-5)


def test_noise_of_neighbours_and_channels_is_independent() -> None:
    image = np.full((400, 400, 3), 128, np.uint8)
    noise = GaussianNoiseTransform(7, seed=1).apply_image(image).astype(float) - 128
    pairs = [
        (noise[..., 0], noise[..., 1]),
        (noise[..., 1], noise[..., 2]),
        (noise[1:], noise[:-1]),
        (noise[:, 1:], noise[:, :-1]),
    ]
    for left, right in pairs:
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 4 / left.size**0.5


def test_noise_saturates_and_seeds_differ() -> None:
    ends = np.zeros((100, 100, 3), np.uint8)
    ends[50:] = 255
    noisy = GaussianNoiseTransform(5, seed=1).apply_image(ends)
    assert noisy[:50].max() < 30 and noisy[50:].min() > 225
    assert not np.array_equal(noisy, GaussianNoiseTransform(5, seed=2).apply_image(ends))


def test_noise_leaves_no_trace_on_the_global_generators() -> None:
    np.random.seed(5)
    cv2.setRNGSeed(5)
    expected = np.random.rand(), cv2.randu(np.zeros(3), 0, 1)
    np.random.seed(5)
    cv2.setRNGSeed(5)
    GaussianNoiseTransform(5, seed=1).apply_image(np.zeros((9, 9, 3), np.uint8))
    assert np.random.rand() == expected[0]
    assert np.array_equal(cv2.randu(np.zeros(3), 0, 1), expected[1])


def test_drawn_values_fill_their_ranges() -> None:
    np.random.seed(0)

    def drawn(augmentation: Any, name: str) -> list[float]:
        return [getattr(augmentation.draw(), name) for _ in range(600)]

    clips = drawn(CLAHE(), "clip_limit")
    assert 1 <= min(clips) < 1.1 and 3.9 < max(clips) <= 4
    variances = np.square(drawn(GaussianNoise(), "sigma"))
    assert 10 <= variances.min() < 11 and 49 < variances.max() <= 50
    # Uniform in the variance, not in the standard deviation.
    assert abs(variances.mean() - 30) < 4 * 40 / (12 * 600) ** 0.5
    sizes, counts = np.unique(drawn(GaussianBlur((3, 7)), "kernel"), return_counts=True)
    assert sizes.tolist() == [3, 5, 7] and counts.min() > 150
    assert set(drawn(GaussianBlur((3, 7)), "sigma")) == {0.0}
    sigmas = drawn(GaussianBlur((3, 3), (0.1, 1.0)), "sigma")
    assert 0.1 <= min(sigmas) < 0.15 and 0.95 < max(sigmas) <= 1
    sizes, counts = np.unique(drawn(MedianBlur(), "kernel"), return_counts=True)
    assert sizes.tolist() == [3, 5] and counts.min() > 240


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianBlur((4, 7)), "odd"),
        (lambda: GaussianBlur((7, 3)), "kernel is"),
        (lambda: MedianBlur((3, 7)), "kernel is"),
        (lambda: GaussianNoise((-1, 5)), "variance is"),
        (lambda: CLAHE((4, 1)), "clip_limit is"),
        (lambda: CLAHE((0, 4)), "clip_limit is"),
    ],
)
def test_impossible_ranges_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
