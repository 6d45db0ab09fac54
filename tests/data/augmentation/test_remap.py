"""Resampling in blocks, against OpenCV's of the whole and SciPy's."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from cellseg_d2.data.augmentation.remap import mirrored, remap


def maps(shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth and rough maps that leave the frame on every side, by more than its size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    noise = rng.normal(0, 2, (2, *shape))
    return (
        (1.7 * x - 0.2 * y - 20 + noise[0]).astype(np.float32),
        (2.1 * y + 0.1 * x - 30 + noise[1]).astype(np.float32),
    )


@pytest.mark.parametrize("limit", [5, 16, 31])
@pytest.mark.parametrize("fill", [None, (9, 8, 7)])
@pytest.mark.parametrize("interpolation", [cv2.INTER_NEAREST, cv2.INTER_LINEAR])
@pytest.mark.parametrize("shape", [(40, 50), (1, 60), (60, 1), (3, 3)])
def test_blocks_equal_the_whole(
    limit: int, fill: tuple[int, ...] | None, interpolation: int, shape: tuple[int, int]
) -> None:
    array = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    map_x, map_y = maps((45, 70))
    whole = remap(array, map_x, map_y, interpolation, fill)
    blocks = remap(array, map_x, map_y, interpolation, fill, limit)
    assert whole.shape == blocks.shape == (45, 70, 3)
    # Coordinates relative to a part are rounded elsewhere: by a level, or near a tie of nearest.
    tolerance = 0 if interpolation == cv2.INTER_NEAREST else 1
    near = np.abs(whole.astype(int) - blocks) <= tolerance
    assert near.mean() > 0.999


@pytest.mark.parametrize("shape", [(2, 40_000), (40_000, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_long_sides_equal_scipy(shape: tuple[int, int], dtype: type) -> None:
    array = np.random.default_rng(2).integers(0, 256, shape).astype(dtype)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    map_x, map_y = 1.01 * x - 60, 1.01 * y - 50
    found = remap(array, map_x, map_y, cv2.INTER_LINEAR)
    assert found.dtype == dtype
    expected = map_coordinates(array.astype(float), [map_y, map_x], order=1, mode="mirror")
    # Coordinates of 40,000 in float32 are 1/256 apart; folding rounds once more.
    assert np.abs(found - expected).max() < 0.51 + 255 / 128


def test_a_map_of_one_column_reaches_a_long_side_in_parts() -> None:
    array = np.arange(200, dtype=np.float32)[None]
    map_x = np.array([[0, 199, 3, 100.5]], np.float32)
    found = remap(array, map_x, np.zeros_like(map_x), cv2.INTER_LINEAR, limit=20)
    assert found.tolist() == [[0, 199, 3, 100.5]]


def test_mirroring_by_hand() -> None:
    coordinates = np.array([-5, -1, 0, 3, 4, 4.5, 8, 9, 12, -4.25], np.float32)
    assert mirrored(coordinates, 5).tolist() == [3, 1, 0, 3, 4, 3.5, 0, 1, 4, 3.75]
    assert mirrored(coordinates, 1).tolist() == [0] * 10


def test_empty_maps() -> None:
    empty = np.zeros((0, 40_000), np.float32)
    found = remap(np.zeros((4, 4, 3), np.uint8), empty, empty, cv2.INTER_NEAREST)
    assert found.shape == (0, 40_000, 3)
