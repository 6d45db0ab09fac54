"""Stain amounts change as scikit-image's deconvolution and reconvolution say."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import hed2rgb, rgb2hed, rgb_from_hed

from cellseg_d2.data.augmentation.stain import STAIN_DENSITIES, HEDJitter, HEDTransform

UNIT = np.log(1e6)
"""scikit-image counts amounts in units of its floor's absorbance, that of a level of 1e-6."""


def stained_image(height: int, width: int, low: float = 0.12) -> np.ndarray:
    """Haematoxylin, eosin and DAB in amounts (optical density) from ``low`` to 0.4."""
    amounts = np.random.default_rng(0).uniform(low, 0.4, (height, width, 3))
    return np.rint(255 * 10 ** -(amounts @ STAIN_DENSITIES)).astype(np.uint8)


def test_stains_are_those_of_ruifrok_and_johnston() -> None:
    assert np.array_equal(STAIN_DENSITIES, rgb_from_hed)
    # To the two digits that their table is printed with.
    assert np.allclose(np.linalg.norm(STAIN_DENSITIES, axis=1), 1, atol=0.01)


@pytest.mark.parametrize(
    ("scale", "shift"),
    [
        ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
        ((1.2, 1.0, 1.0), (0.0, 0.0, 0.0)),
        ((1.0, 0.8, 1.0), (0.0, 0.0, 0.0)),
        ((1.0, 1.0, 1.1), (0.0, 0.0, 0.05)),
        ((0.95, 1.05, 0.97), (0.03, -0.04, 0.02)),
    ],
)
def test_equals_skimage_within_a_level(
    scale: tuple[float, float, float], shift: tuple[float, float, float]
) -> None:
    # scikit-image cuts amounts off at 0: amounts above 0, before and after, make that irrelevant.
    image = stained_image(700, 300)
    amounts = rgb2hed(image)
    assert amounts.min() > 0
    expected = 255 * hed2rgb(amounts * scale + np.array(shift) / UNIT)
    changed = HEDTransform(scale, shift).apply_image(image)
    assert np.abs(changed - expected).max() <= 0.52


def test_the_changed_amounts_are_read_back() -> None:
    image = stained_image(200, 150, low=0.2)
    scale, shift = (1.05, 0.95, 1.02), (0.05, -0.05, 0.03)
    before = UNIT * rgb2hed(image)
    after = UNIT * rgb2hed(HEDTransform(scale, shift).apply_image(image))
    # A level is up to 0.03 of absorbance in the darkest pixels, times the inverse's largest row.
    assert np.abs(after - (before * scale + shift)).max() < 0.08
    assert np.abs((after - (before * scale + shift)).mean((0, 1))).max() < 2e-3


def test_neutral_values_change_no_colour() -> None:
    image = np.random.default_rng(0).integers(0, 256, (400, 500, 3)).astype(np.uint8)
    assert np.array_equal(HEDTransform((1, 1, 1), (0, 0, 0)).apply_image(image), image)


def test_a_pure_stain_keeps_its_hue_and_its_neighbours_amounts() -> None:
    haematoxylin = np.rint(255 * 10 ** -(0.5 * STAIN_DENSITIES[:1])).astype(np.uint8)[None]
    changed = HEDTransform((1.3, 1.0, 1.0), (0, 0, 0)).apply_image(haematoxylin)
    expected = 255 * 10 ** -(0.65 * STAIN_DENSITIES[0])
    assert np.abs(changed[0, 0] - expected).max() <= 1.2


def test_white_stays_white_without_a_shift_and_takes_the_stain_with_one() -> None:
    white = np.full((2, 2, 3), 255, np.uint8)
    assert np.array_equal(HEDTransform((1.5, 0.5, 1.2), (0, 0, 0)).apply_image(white), white)
    shifted = HEDTransform((1, 1, 1), (0.05, 0, 0)).apply_image(white)
    assert np.array_equal(shifted[0, 0], np.rint(255 * np.exp(-0.05 * STAIN_DENSITIES[0])))
    assert np.array_equal(HEDTransform((1, 1, 1), (-0.05, 0, 0)).apply_image(white), white)


def test_drawn_values_fill_their_ranges_each_by_itself() -> None:
    np.random.seed(0)
    drawn = [HEDJitter(0.05, 0.02).draw() for _ in range(600)]
    scales = np.array([tfm.scale for tfm in drawn])
    shifts = np.array([tfm.shift for tfm in drawn])
    assert scales.shape == shifts.shape == (600, 3)
    for values, low, high in ((scales, 0.95, 1.05), (shifts, -0.02, 0.02)):
        margin = (high - low) / 40
        assert np.all(values.min(0) >= low) and np.all(values.min(0) < low + margin)
        assert np.all(values.max(0) <= high) and np.all(values.max(0) > high - margin)
    correlation = np.corrcoef(np.hstack([scales, shifts]).T) - np.eye(6)
    assert np.abs(correlation).max() < 4 / 600**0.5


def test_a_jitter_of_usual_strength_is_mild() -> None:
    image = stained_image(60, 60)
    for seed in range(30):
        np.random.seed(seed)
        changed = HEDJitter().draw().apply_image(image).astype(int)
        assert 0 < np.abs(changed - image).mean() < 40


@pytest.mark.parametrize(("scale", "shift", "name"), [(1.5, 0.1, "scale"), (0.1, -0.1, "shift")])
def test_impossible_limits_are_refused(scale: float, shift: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        HEDJitter(scale, shift)
