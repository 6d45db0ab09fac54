"""Warps move image and labels alike, once; oracles are NumPy and SciPy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from fvcore.transforms.transform import NoOpTransform
from scipy.ndimage import map_coordinates

from cellseg_d2.data.augmentation import CellAugInput
from cellseg_d2.data.augmentation.choice import OneOf
from cellseg_d2.data.augmentation.warp import (
    Affine,
    Elastic,
    GridDistortion,
    HFlip,
    OpticalDistortion,
    ResizedCrop,
    Rot90,
    Rotate,
    VFlip,
    Warp,
    WarpPrimitive,
    Zoom,
)
from cellseg_d2.data.augmentation.warp_maps import AffineMap, compose
from cellseg_d2.data.augmentation.warp_transforms import (
    AffineWarpTransform,
    DenseWarpTransform,
    SymmetryTransform,
)

from .warps import AFFINE, backward_points, name

DENSE: list[WarpPrimitive] = [
    Elastic(30, 12, prob=1),
    Elastic(120, 6, prob=1),
    GridDistortion(prob=1),
    OpticalDistortion(limit=2, prob=1),
]


FLIPS: list[WarpPrimitive] = [HFlip(prob=1), VFlip(prob=1), Rot90(prob=1)]


EVERYTHING = Warp([HFlip(), VFlip(), Rot90(0.7), *AFFINE, OneOf(DENSE, prob=0.8)])


def colour_of(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536 % 256], axis=-1).astype(np.uint8)


def ids_of(image: np.ndarray) -> np.ndarray:
    return image.astype(np.int64) @ np.array([1, 256, 65536])


def random_ids(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**24, (height, width)).astype(np.int32)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("flips", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("shape", [(5, 9), (1, 1), (33, 35)])
def test_flips_and_turns_are_exact(
    turns: int, flips: tuple[int, int], shape: tuple[int, int]
) -> None:
    ids = random_ids(*shape)
    image = colour_of(ids)
    warp = Warp([HFlip(prob=flips[0]), VFlip(prob=flips[1]), Rot90(prob=1, turns=[turns])])
    tfm = warp.get_transform(image)
    assert isinstance(tfm, (NoOpTransform, SymmetryTransform))

    def expected(array: np.ndarray) -> np.ndarray:
        array = array[:, ::-1] if flips[0] else array
        array = array[::-1] if flips[1] else array
        return np.rot90(array, turns)

    assert np.array_equal(tfm.apply_image(image), expected(image))
    assert np.array_equal(tfm.apply_image(image[:, :, :1]), expected(image[:, :, :1]))
    moved = tfm.apply_segmentation(ids)
    assert np.array_equal(moved, expected(ids)) and moved.dtype == np.int32


@pytest.mark.parametrize("primitive", AFFINE + DENSE, ids=name)
@pytest.mark.parametrize("shape", [(50, 70), (33, 35), (1, 1), (1, 40)])
def test_resampling_equals_scipy(primitive: WarpPrimitive, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    # Up to the largest id there is: neither float32 nor 16 bits would carry them.
    ids = rng.integers(2**31 - 2**20, 2**31, shape).astype(np.int32)
    np.random.seed(0)
    tfm = primitive.get_transform(image)
    assert isinstance(tfm, (AffineWarpTransform, DenseWarpTransform))
    points = backward_points(tfm)
    # SciPy cannot mirror a row of one pixel.
    points = tuple(np.zeros_like(p) if n == 1 else p for p, n in zip(points, shape, strict=True))
    nearest = map_coordinates(ids.astype(np.float64), points, order=0, mode="mirror")
    # OpenCV before 5 rounds coordinates to 1/1024 (affine): near a tie either pixel is nearest.
    clear = np.all([np.abs(p % 1 - 0.5) > 2e-3 for p in points], axis=0)
    found = tfm.apply_segmentation(ids)
    assert found.dtype == np.int32 and clear.mean() > 0.9 - 0.9 * (max(shape) == 1)
    assert np.array_equal(found[clear], nearest[clear])
    warped = tfm.apply_image(image)
    assert warped.dtype == np.uint8
    # The error of rounding, and before OpenCV 5 of coordinates rounded to 1/32.
    tolerance = 0.51 if cv2.__version__ >= "5" else 255 / 16
    for channel in range(3):
        plane = image[:, :, channel].astype(np.float64)
        linear = map_coordinates(plane, points, order=1, mode="mirror")
        assert np.abs(warped[:, :, channel] - linear).max() < tolerance


@pytest.mark.parametrize("primitive", FLIPS + AFFINE + DENSE, ids=name)
def test_image_and_labels_stay_aligned(primitive: WarpPrimitive) -> None:
    # Squares of one id. A second label map marks the pixels whose eight neighbours share their id:
    # a sample nearest to one of those interpolates between equal colours.
    ids = np.kron(random_ids(12, 15), np.ones((16, 16), np.int32))
    square = np.zeros((16, 16), np.int32)
    square[1:15, 1:15] = 1
    inner = np.tile(square, (12, 15))
    for seed in range(5):
        np.random.seed(seed)
        sample = CellAugInput(colour_of(ids), [ids, inner])
        Warp([HFlip(), primitive])(sample)
        labels, inside = sample.label_maps[0], sample.label_maps[1] == 1
        assert np.isin(labels, ids).all()
        assert inside.mean() > 0.6
        assert np.array_equal(ids_of(sample.image)[inside], labels[inside])


@pytest.mark.parametrize("shape", [(1, 1), (33, 35), (2500, 2000)])
def test_a_whole_recipe_keeps_sizes_and_ids(shape: tuple[int, int]) -> None:
    ids = random_ids(*shape)
    for seed in range(2 if shape[0] > 1000 else 20):
        np.random.seed(seed)
        sample = CellAugInput(colour_of(ids), [ids, ids // 2])
        EVERYTHING(sample)
        assert sample.image.shape[:2] in (shape, shape[::-1])
        assert sample.label_maps[0].shape == sample.image.shape[:2]
        assert np.isin(sample.label_maps[0], ids).all()
        assert np.array_equal(sample.label_maps[0] // 2, sample.label_maps[1])


def test_two_affine_steps_are_one_resampling_by_the_product() -> None:
    image = colour_of(random_ids(50, 70))
    steps = [Rotate(20, prob=1), Zoom(0.5, 0.9, prob=1)]
    np.random.seed(0)
    maps = []
    for step in steps:
        assert step._rand_range() < 1
        maps.append(step.draw(50, 70))
    np.random.seed(0)
    tfm = Warp(steps).get_transform(image)
    assert isinstance(tfm, AffineWarpTransform)
    product = compose(maps)
    assert isinstance(product, AffineMap)
    assert np.array_equal(tfm.mapping.matrix, product.matrix)
    assert np.allclose(product.matrix, maps[0].matrix @ maps[1].matrix)


@pytest.mark.parametrize(
    "primitive",
    [
        Warp([HFlip(prob=0), Elastic(30, 12, prob=0), Rotate(20, prob=0)]),
        Warp([HFlip(prob=1), HFlip(prob=1)]),
        Warp([Rot90(prob=1, turns=[1]), Rot90(prob=1, turns=[3])]),
        Rotate(0, prob=1),
        Zoom(1, 1, prob=1),
        ResizedCrop((1, 1), (0.9, 1.1), prob=1),
        Affine(prob=1),
        Elastic(0, 6, prob=1),
        GridDistortion(limit=0, prob=1),
        OpticalDistortion(limit=0, shift=0, prob=1),
    ],
    ids=repr,
)
def test_an_identity_leaves_every_byte(primitive: Warp | WarpPrimitive) -> None:
    ids = random_ids(101, 67)
    sample = CellAugInput(colour_of(ids), [ids])
    primitive(sample)
    assert np.array_equal(sample.image, colour_of(ids))
    assert np.array_equal(sample.label_maps[0], ids)


@pytest.mark.parametrize("primitive", FLIPS + AFFINE, ids=name)
def test_coordinates_go_where_the_pixels_go(primitive: WarpPrimitive) -> None:
    labels = np.zeros((120, 160), np.int32)
    labels[50:53, 90:93] = 7
    for seed in range(5):
        np.random.seed(seed)
        tfm = Warp([HFlip(), primitive]).get_transform(labels)
        ys, xs = np.nonzero(tfm.apply_segmentation(labels))
        moved = tfm.apply_coords(np.array([[91.5, 51.5]]))[0]
        assert np.abs(moved - (xs.mean() + 0.5, ys.mean() + 0.5)).max() < 0.6


def test_a_dense_warp_has_no_forward_coordinates() -> None:
    tfm = Elastic(30, 12, prob=1).get_transform(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(NotImplementedError, match="label"):
        tfm.apply_coords(np.zeros((1, 2)))


def test_positive_angles_turn_as_rot90() -> None:
    ids = random_ids(21, 21)
    rotate = Rotate(90, prob=1)
    rotate._rand_range = lambda *bounds: 90.0 if len(bounds) == 2 else 0.0  # type: ignore
    assert np.array_equal(rotate.get_transform(ids).apply_segmentation(ids), np.rot90(ids))


def test_zoom_above_one_enlarges() -> None:
    labels = np.zeros((100, 100), np.int32)
    labels[40:60, 40:60] = 1
    zoomed = Zoom(1.5, 1.5, prob=1).get_transform(labels).apply_segmentation(labels)
    assert zoomed.sum() == pytest.approx(900, rel=0.08)


def test_resized_crops_stay_inside_and_within_their_ranges() -> None:
    crop = ResizedCrop((0.8, 1.0), (0.9, 1.1), prob=1)
    np.random.seed(0)
    for _ in range(300):
        drawn = crop.draw(200, 300)
        assert isinstance(drawn, AffineMap)
        (sx, _, tx), (_, sy, ty) = drawn.matrix[:2]
        assert 0.8 - 1e-9 <= sx * sy <= 1 + 1e-9 and 0.9 - 1e-9 <= sx / sy <= 1.1 + 1e-9
        # The crop's edges: output edges -1/2 and size - 1/2.
        for scale, shift, size in ((sx, tx, 300), (sy, ty, 200)):
            assert -0.5 * scale + shift >= -0.5 - 1e-9
            assert (size - 0.5) * scale + shift <= size - 0.5 + 1e-9


def test_probabilities_and_choices() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    np.random.seed(0)
    flips = [HFlip(prob=0.3).get_transform(image) for _ in range(2000)]
    share = np.mean([isinstance(t, SymmetryTransform) for t in flips])
    assert share == pytest.approx(0.3, abs=0.04)
    turns = {
        Rot90(prob=1).get_transform(image[:, :, 0]).apply_segmentation(i.copy()).tobytes()
        for i in [random_ids(20, 20)]
        for _ in range(50)
    }
    assert len(turns) == 4
    warp = Warp([OneOf([HFlip(prob=0.3), VFlip(prob=0.9), Rotate(9, prob=0)], prob=0.5)])
    drawn = [warp.get_transform(image) for _ in range(4000)]
    kinds = [d.names if isinstance(d, SymmetryTransform) else None for d in drawn]
    shares = [kinds.count(k) / len(kinds) for k in (None, ("HFlip",), ("VFlip",))]
    assert shares == pytest.approx([0.5, 0.125, 0.375], abs=0.04)


def test_the_same_seed_draws_the_same_bytes() -> None:
    ids = random_ids(60, 80)
    results = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        sample = CellAugInput(colour_of(ids), [ids])
        EVERYTHING(sample)
        results.append(sample.image.tobytes() + sample.label_maps[0].tobytes())
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.bool_])
def test_label_maps_of_other_types_and_strides(dtype: type) -> None:
    labels = (random_ids(30, 40) % 2**16).astype(dtype)
    tfm = Rotate(20, prob=1).get_transform(labels)
    warped = tfm.apply_segmentation(labels)
    assert warped.dtype == dtype and np.isin(warped, labels).all()
    assert np.array_equal(tfm.apply_segmentation(labels.T.copy().T), warped)
    image = colour_of(labels.astype(np.int32))
    mirrored = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    assert np.array_equal(tfm.apply_image(mirrored), tfm.apply_image(image))


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_label_maps_that_cannot_be_kept_exact_are_refused(dtype: type) -> None:
    labels = np.zeros((30, 40), dtype)
    for primitive in (HFlip(prob=1), Rotate(20, prob=1), GridDistortion(prob=1)):
        with pytest.raises(ValueError, match=np.dtype(dtype).name):
            primitive.get_transform(labels).apply_segmentation(labels)


def test_arrays_of_another_size_are_refused() -> None:
    for primitive in (HFlip(prob=1), Rotate(20, prob=1), GridDistortion(prob=1)):
        tfm = primitive.get_transform(np.zeros((4, 6, 3), np.uint8))
        with pytest.raises(ValueError, match=r"\(3, 3\).*\(4, 6\)"):
            tfm.apply_segmentation(np.zeros((3, 3), np.int32))


@pytest.mark.parametrize("shape", [(2, 40_000), (40_000, 2)])
def test_rows_too_long_for_opencv_are_warped(shape: tuple[int, int]) -> None:
    ids = random_ids(*shape)
    # Elastic after a rotation samples its displacements between pixels, too.
    warp = Warp([Rotate(1e-4, prob=1), Elastic(30, 3, prob=1), GridDistortion(limit=0.1, prob=1)])
    np.random.seed(0)
    tfm = warp.get_transform(ids)
    assert isinstance(tfm, DenseWarpTransform)
    points = backward_points(tfm)
    nearest = map_coordinates(ids.astype(np.float64), points, order=0, mode="mirror")
    clear = np.all([np.abs(p % 1 - 0.5) > 2e-2 for p in points], axis=0)
    assert clear.mean() > 0.8
    assert np.array_equal(tfm.apply_segmentation(ids)[clear], nearest[clear])


def test_representations_name_the_parameters() -> None:
    warp = Warp([HFlip(prob=0.25), OneOf([Rotate(15)], prob=0.75)])
    assert "HFlip(prob=0.25)" in repr(warp) and "limit=15" in repr(warp)
