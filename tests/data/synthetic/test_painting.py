"""Painting: the colours of H&E, and masks that fit what is seen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from cellseg_d2.data.synthetic import MACENKO_STAINS, RUIFROK_STAINS, make_image, painting


def absorbance(image: np.ndarray) -> np.ndarray:
    return -np.log((image.astype(np.float64) + 1) / 256)


def separated_stains(image: np.ndarray) -> np.ndarray:
    """Haematoxylin and eosin (2, H, W) by least squares on the mean of the published vectors."""
    vectors = (np.array(RUIFROK_STAINS) + np.array(MACENKO_STAINS)) / 2
    amounts = absorbance(image).reshape(-1, 3) @ np.linalg.pinv(vectors)
    return amounts.T.reshape(2, *image.shape[:2])


@pytest.fixture(scope="module")
def crowded() -> tuple[np.ndarray, np.ndarray]:
    return make_image(np.random.default_rng(0), (500, 520), 190)


def test_nuclei_are_blue_and_stroma_is_pink(crowded):
    image, label_maps = crowded
    inside = (label_maps > 0).any(axis=0)
    nuclei, stroma = image[inside].mean(axis=0), image[~inside].mean(axis=0)
    assert nuclei[2] > nuclei[0] + 10 > nuclei[1] + 10  # blue, then red, then green
    assert stroma[0] > stroma[2] > stroma[1]
    assert stroma.min() > 130


def test_every_class_holds_more_haematoxylin_than_stroma(crowded):
    image, label_maps = crowded
    haematoxylin = separated_stains(image)[0]
    outside = haematoxylin[~(label_maps > 0).any(axis=0)].mean()
    means = [haematoxylin[label_map > 0].mean() for label_map in label_maps]
    assert min(means) > 2 * outside
    assert means[1] == max(means)  # lymphocytes are the darkest


@pytest.mark.parametrize("category", range(4))
def test_masks_are_aligned_to_the_pixel(category):
    """The absorbance steps up most where the mask does, not where a shifted mask would."""
    weights = np.eye(4)[category]
    image, label_maps = make_image(
        np.random.default_rng(5), (400, 400), 25, class_weights=weights, overlap=0.0
    )
    dark = absorbance(image).sum(axis=2)
    mask = label_maps[category] > 0

    def contrast(dy: int, dx: int) -> float:
        moved = np.roll(mask, (dy, dx), axis=(0, 1))
        inner = moved & ~ndimage.binary_erosion(moved, iterations=2)
        outer = ndimage.binary_dilation(moved, iterations=2) & ~moved
        return dark[inner].mean() - dark[outer].mean()

    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    assert max(shifts, key=lambda shift: contrast(*shift)) == (0, 0)


def test_bands_leave_no_seam(monkeypatch):
    """What is drawn in bands of rows equals what is drawn at once."""
    whole = painting.paint_stroma(np.random.default_rng(1), (90, 70))
    monkeypatch.setattr(painting, "BAND_ROWS", 16)
    bands = painting.paint_stroma(np.random.default_rng(1), (90, 70))
    for one, other in zip(whole, bands, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)
