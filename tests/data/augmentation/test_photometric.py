"""Colours change as torchvision changes them; nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform
from torchvision.transforms.v2 import functional as tv

from cellseg_d2.data.augmentation import CellAugInput
from cellseg_d2.data.augmentation.filters import CLAHE, GaussianBlur, GaussianNoise, MedianBlur
from cellseg_d2.data.augmentation.photometric import (
    Brightness,
    BrightnessContrast,
    BrightnessContrastTransform,
    BrightnessTransform,
    ColorJitter,
    Contrast,
    ContrastTransform,
    Gamma,
    GammaTransform,
    Hue,
    HueTransform,
    Saturation,
    SaturationTransform,
)
from cellseg_d2.data.augmentation.photometric_base import (
    PhotometricAugmentation,
    PhotometricTransform,
)
from cellseg_d2.data.augmentation.stain import HEDJitter

# Every photometric augmentation of the package, each as wide as it goes in practice.
ALL: list[Callable[..., PhotometricAugmentation]] = [
    lambda **k: Brightness((0.7, 1.3), **k),
    lambda **k: Contrast((0.7, 1.3), **k),
    lambda **k: Saturation((0.7, 1.3), **k),
    lambda **k: Hue((-0.15, 0.15), **k),
    lambda **k: ColorJitter(0.3, 0.3, 0.3, 0.15, **k),
    lambda **k: BrightnessContrast(**k),
    lambda **k: Gamma(**k),
    lambda **k: CLAHE(**k),
    lambda **k: GaussianBlur(**k),
    lambda **k: MedianBlur(**k),
    lambda **k: GaussianNoise(**k),
    lambda **k: HEDJitter(**k),
]
every_augmentation = pytest.mark.parametrize("make", ALL)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def all_greys() -> np.ndarray:
    return np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)


def in_torchvision(function: Callable[..., torch.Tensor], image: np.ndarray, value: float) -> Any:
    """torchvision's answer in levels with their fractions, which it cuts off from uint8 images."""
    share = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)
    return 255 * function(share, value).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("value", [0.0, 0.7, 1.0, 1.3, 2.0])
@pytest.mark.parametrize(
    ("transform", "function"),
    [
        (BrightnessTransform, tv.adjust_brightness),
        (ContrastTransform, tv.adjust_contrast),
        (SaturationTransform, tv.adjust_saturation),
        (GammaTransform, tv.adjust_gamma),
    ],
)
def test_equals_torchvision_to_the_nearest_level(
    transform: Any, function: Any, value: float
) -> None:
    # Off-balance channels, so that the weights of the grey matter.
    image = random_image(60, 70)
    image[..., 0] //= 2
    changed = transform(value).apply_image(image)
    # Beyond rounding: torchvision's weights of red, .2989 for .299, and 8-bit matrix products.
    assert np.abs(changed - in_torchvision(function, image, value)).max() <= 0.65
    assert changed.dtype == np.uint8


@pytest.mark.parametrize("value", [-0.5, -0.15, 0.0, 0.05, 0.15, 0.5])
def test_hue_equals_torchvision_to_the_nearest_level(value: float) -> None:
    image = random_image(600, 500)  # more rows than one strip
    difference = HueTransform(value).apply_image(image) - in_torchvision(
        tv.adjust_hue, image, value
    )
    assert np.abs(difference).max() <= 0.51


@pytest.mark.parametrize("by_max", [True, False])
@pytest.mark.parametrize(("contrast", "brightness"), [(1.0, 0.2), (0.8, -0.2), (1.2, 0.1)])
def test_brightness_contrast_is_the_formula(
    by_max: bool, contrast: float, brightness: float
) -> None:
    image = random_image(40, 50) // 2
    reference = 255 if by_max else contrast * image.mean()
    expected = np.clip(contrast * image.astype(float) + brightness * reference, 0, 255)
    changed = BrightnessContrastTransform(contrast, brightness, by_max).apply_image(image)
    assert np.abs(changed - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    "neutral",
    [
        BrightnessTransform(1),
        ContrastTransform(1),
        SaturationTransform(1),
        HueTransform(0),
        HueTransform(1),
        GammaTransform(1),
        BrightnessContrastTransform(1, 0),
    ],
)
def test_neutral_values_change_nothing(neutral: PhotometricTransform) -> None:
    image = random_image(300, 400)
    assert np.array_equal(neutral.apply_image(image), image)


@pytest.mark.parametrize("value", np.linspace(-0.5, 0.5, 21))
def test_greys_keep_their_level_under_saturation_and_hue(value: float) -> None:
    greys = all_greys()
    assert np.array_equal(SaturationTransform(1 + 2 * value).apply_image(greys), greys)
    assert np.array_equal(HueTransform(value).apply_image(greys), greys)


def test_saturation_zero_is_grey() -> None:
    changed = SaturationTransform(0).apply_image(random_image(30, 40)).astype(int)
    assert np.ptp(changed, axis=2).max() == 0


@every_augmentation
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (33, 35), (130, 90)])
def test_shape_type_labels_and_input_stay(make: Any, shape: tuple[int, int]) -> None:
    np.random.seed(0)
    # A flipped view, as a flip before it in a recipe hands it on.
    image = random_image(*shape)[:, ::-1]
    label_map = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)
    before = image.copy()
    sample = CellAugInput(image, [label_map])
    tfm = make()(sample)
    assert sample.image.shape == image.shape and sample.image.dtype == np.uint8
    assert np.array_equal(image, before) and sample.image is not image
    assert sample.label_maps[0] is label_map
    points = np.array([[0.5, 1.5]])
    assert np.array_equal(tfm.apply_coords(points), points)
    assert np.array_equal(tfm.inverse().apply_coords(points), points)


@every_augmentation
def test_the_seed_alone_decides(make: Any) -> None:
    image = random_image(80, 90)
    augmentation = make()

    def under(seed: int) -> bytes:
        np.random.seed(seed)
        sample = CellAugInput(image, [])
        augmentation(sample)
        return sample.image.tobytes()

    first = [under(seed) for seed in range(12)]
    assert [under(seed) for seed in reversed(range(12))] == first[::-1]
    assert len(set(first)) > 1
    # A transform, once drawn, can be applied again.
    tfm = augmentation.draw()
    assert np.array_equal(tfm.apply_image(image), tfm.apply_image(image))


@every_augmentation
def test_opencv_s_threads_change_no_byte(make: Any) -> None:
    # A loader's workers run OpenCV on one thread, a loader without workers on all.
    image = random_image(300, 301)
    np.random.seed(0)
    tfm = make().draw()
    threads = cv2.getNumThreads()
    try:
        results = []
        for count in (0, 1, 4):
            cv2.setNumThreads(count)
            results.append(tfm.apply_image(image).tobytes())
    finally:
        cv2.setNumThreads(threads)
    assert len(set(results)) == 1


@every_augmentation
def test_prob_is_how_often_it_is_applied(make: Any) -> None:
    np.random.seed(1)
    image = random_image(2, 2)
    drawn = [make(prob=0.3).get_transform(image) for _ in range(500)]
    applied = sum(not isinstance(tfm, NoOpTransform) for tfm in drawn)
    assert 110 <= applied <= 190  # four standard deviations of a binomial draw about 150
    with pytest.raises(ValueError, match="prob is 1.5"):
        make(prob=1.5)


@every_augmentation
@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)])
def test_other_images_are_refused(make: Any, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="takes a uint8 image"):
        make().draw().apply_image(image)


def test_drawn_values_fill_their_ranges() -> None:
    np.random.seed(2)
    image = random_image(2, 2)
    cases: list[tuple[PhotometricAugmentation, str, float, float]] = [
        (Brightness((0.5, 1.5)), "factor", 0.5, 1.5),
        (Contrast((0.9, 1.4)), "factor", 0.9, 1.4),
        (Saturation((0.0, 3.0)), "factor", 0.0, 3.0),
        (Hue((-0.1, 0.4)), "shift", -0.1, 0.4),
        (Gamma((0.8, 1.2)), "gamma", 0.8, 1.2),
        (BrightnessContrast(0.2, 0.1), "brightness", -0.2, 0.2),
        (BrightnessContrast(0.2, 0.1), "contrast", 0.9, 1.1),
    ]
    for augmentation, name, low, high in cases:
        drawn = [getattr(augmentation.get_transform(image), name) for _ in range(400)]
        margin = (high - low) / 40
        assert low <= min(drawn) < low + margin
        assert high - margin < max(drawn) <= high


def test_jitter_draws_torchvision_s_ranges_in_every_order() -> None:
    np.random.seed(3)
    names = ["Brightness", "Contrast", "Saturation", "Hue"]
    values: dict[str, list[float]] = {f"{name}Transform": [] for name in names}
    orders = set()
    for _ in range(600):
        parts = ColorJitter(1.5, 0.3, 0.2, 0.05).draw().transforms
        orders.add(tuple(type(part).__name__ for part in parts))
        for part in parts:
            value = part.shift if isinstance(part, HueTransform) else part.factor
            values[type(part).__name__].append(value)
    assert len(orders) == 24
    expected = [(0.0, 2.5), (0.7, 1.3), (0.8, 1.2), (-0.05, 0.05)]
    for (low, high), drawn in zip(expected, values.values(), strict=True):
        assert len(drawn) == 600
        assert low <= min(drawn) < low + (high - low) / 40
        assert high - (high - low) / 40 < max(drawn) <= high


def test_jitter_of_one_kind_draws_only_that() -> None:
    tfm = ColorJitter(0, 0, 0.2, 0).draw()
    assert [type(part) for part in tfm.transforms] == [SaturationTransform]
    assert isinstance(ColorJitter(0, 0, 0, 0).draw(), T.TransformList)


def test_jitter_equals_torchvision_s_parts_in_the_same_order() -> None:
    functions = {
        BrightnessTransform: tv.adjust_brightness,
        ContrastTransform: tv.adjust_contrast,
        SaturationTransform: tv.adjust_saturation,
        HueTransform: tv.adjust_hue,
    }
    image = random_image(90, 80) // 2 + 60
    for seed in range(10):
        np.random.seed(seed)
        jitter = ColorJitter(0.2, 0.2, 0.2, 0.05).draw()
        expected = image
        for part in jitter.transforms:
            value = part.shift if isinstance(part, HueTransform) else part.factor
            expected = in_torchvision(functions[type(part)], expected, value)
        difference = np.abs(jitter.apply_image(image) - expected)
        # Half a level is rounded off in each of four steps, and stretched by those after it.
        assert difference.max() <= 5 and difference.mean() < 0.7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Brightness((1.2, 0.8)), r"factor is \(1.2, 0.8\)"),
        (lambda: Contrast((-0.1, 1)), "factor is"),
        (lambda: Hue((-0.6, 0.1)), "shift is"),
        (lambda: ColorJitter(hue=0.7), "shift is"),
        (lambda: ColorJitter(saturation=-0.1), "factor is"),
        (lambda: Gamma((0.8,)), "gamma is"),
        (lambda: BrightnessContrast(contrast=1.2), "contrast is 1.2"),
    ],
)
def test_impossible_ranges_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_reads_as_what_it_does() -> None:
    # The names on a contact sheet and in a log.
    assert str(GammaTransform(0.9)) == "GammaTransform(gamma=0.9)"
    np.random.seed(0)
    assert "array" not in str(ColorJitter().draw())
    assert "factor=(0.5, 1.5)" in str(Brightness((0.5, 1.5), prob=0.3))
