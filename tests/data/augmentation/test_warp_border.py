"""What warps show beyond the frame of an image."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import transforms as T
from scipy.ndimage import label, map_coordinates

from cellseg_d2.data.augmentation import CellAugInput
from cellseg_d2.data.augmentation.choice import OneOf
from cellseg_d2.data.augmentation.photometric import Gamma
from cellseg_d2.data.augmentation.warp import (
    Affine,
    Elastic,
    GridDistortion,
    HFlip,
    OpticalDistortion,
    ResizedCrop,
    Rot90,
    Rotate,
    Warp,
    WarpPrimitive,
    Zoom,
    background_color,
)
from cellseg_d2.data.augmentation.warp_transforms import (
    AffineWarpTransform,
    DenseWarpTransform,
)

from .warps import AFFINE, backward_points, name

SPECKS = np.kron(np.arange(1, 41, dtype=np.int32).reshape(5, 8), np.pad(np.ones((8, 8)), 4)).astype(
    np.int32
)
"""40 squares of 8 pixels, 4 from the frame and 8 from each other."""


@pytest.mark.parametrize("primitive", [*AFFINE, Elastic(30, 12, prob=1)], ids=name)
def test_beyond_the_frame_there_is_background(primitive: WarpPrimitive) -> None:
    image = np.where(SPECKS[:, :, None] > 0, 250, [200, 100, 50]).astype(np.uint8)
    for seed in range(8):
        np.random.seed(seed)
        sample = CellAugInput(image, [SPECKS, SPECKS // 2])
        tfm = Warp([primitive], border="background")(sample)
        assert isinstance(tfm, AffineWarpTransform | DenseWarpTransform)
        points = backward_points(tfm)
        labels = sample.label_maps[0]
        nearest = map_coordinates(SPECKS.astype(np.float64), points, order=0, mode="constant")
        clear = np.all([np.abs(p % 1 - 0.5) > 2e-3 for p in points], axis=0)
        assert np.array_equal(labels[clear], nearest[clear])
        assert np.array_equal(labels // 2, sample.label_maps[1])
        beyond = np.any(
            [(p <= -1) | (p >= n) for p, n in zip(points, SPECKS.shape, strict=True)], axis=0
        )
        assert not labels[beyond].any()
        assert (sample.image[beyond] == [200, 100, 50]).all()
        for channel in range(3):
            # SciPy's "constant" does not interpolate across the frame's edge; a padded frame does.
            plane = np.pad(image[:, :, channel].astype(float), 60, constant_values=0)
            plane[_frame_of(plane.shape, 60)] = [200, 100, 50][channel]
            shifted = [p + 60 for p in points]
            linear = map_coordinates(plane, shifted, order=1, mode="nearest")
            assert np.abs(sample.image[:, :, channel] - linear).max() < 0.51


def _frame_of(shape: tuple[int, ...], width: int) -> np.ndarray:
    frame = np.ones(shape, bool)
    frame[width:-width, width:-width] = False
    return frame


@pytest.mark.parametrize(("border", "twice"), [("mirror", True), ("background", False)])
def test_cells_are_shown_twice_only_where_mirrored(border: str, twice: bool) -> None:
    several = 0
    for seed in range(20):
        np.random.seed(seed)
        sample = CellAugInput(np.zeros((*SPECKS.shape, 3), np.uint8), [SPECKS])
        Warp([Affine(rotate=15, scale=(0.85, 1.2), shear=5, prob=1)], border=border)(sample)
        (moved,) = sample.label_maps
        several += sum(label(moved == i)[1] > 1 for i in np.unique(moved[moved > 0]))
    assert bool(several) == twice


def test_the_background_s_colour() -> None:
    image = np.full((64, 64, 3), [10, 20, 30], np.uint8)
    labels = np.zeros((64, 64), np.int32)
    labels[:32] = 5
    image[:32] = 200
    assert background_color(image, [labels, np.zeros_like(labels)]) == [10, 20, 30]
    other = np.flipud(labels)
    assert background_color(image, [labels, other]) == [105, 110, 115], "all is labelled"
    assert background_color(image[:, :, 0], []) == [105]
    assert background_color(image[:1, :1].astype(np.float32), [labels[:1, :1]]) == [200] * 3


def test_a_mirror_needs_no_label_maps_and_a_background_finds_its_own() -> None:
    plain = T.AugInput(np.full((30, 40, 3), 7, np.uint8))
    Warp([Rotate(20, prob=1)])(plain)
    assert (plain.image == 7).all()
    with pytest.raises(AttributeError, match="label_maps"):
        Warp([Rotate(20, prob=1)], border="background")(plain)


@pytest.mark.parametrize(
    "make",
    [
        lambda: HFlip(prob=1.1),
        lambda: Rot90(turns=[]),
        lambda: Rotate(-1),
        lambda: Zoom(0, 1),
        lambda: ResizedCrop((0.8, 1.2), (1, 1)),
        lambda: ResizedCrop((0.8, 1.0), (1.1, 0.9)),
        lambda: Affine(shear=45),
        lambda: Elastic(30, 0),
        lambda: GridDistortion(limit=1),
        lambda: OpticalDistortion(limit=-1),
        lambda: Warp([HFlip()], border="reflect"),
        lambda: Warp([OneOf([HFlip(), Gamma()])]),
    ],
)
def test_ranges_that_make_no_sense_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        make()  # type: ignore[operator]
