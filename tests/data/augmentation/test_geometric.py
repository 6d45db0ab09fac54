"""Each transform moves ids and pixels alike; oracles are NumPy, OpenCV and Detectron2."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T

from cellseg_d2 import ConfigError
from cellseg_d2.config import load_config
from cellseg_d2.data.augmentation import (
    CellAugInput,
    ResizeShortestEdge,
    ResizeTransform,
    build_augmentations,
    build_recipe,
)


def colour_of(ids: np.ndarray) -> np.ndarray:
    """An image whose colours are the ids, so that alignment can be read off each pixel."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536 % 256], axis=-1).astype(np.uint8)


def ids_of(image: np.ndarray) -> np.ndarray:
    return image.astype(np.int64) @ np.array([1, 256, 65536])


def random_ids(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**24, (height, width)).astype(np.int32)


@pytest.mark.parametrize("size", [(40, 60), (13, 90), (120, 31), (1, 1), (40, 59)])
def test_resize_of_labels_is_nearest_by_pixel_centre(size: tuple[int, int]) -> None:
    # Ids up to 2^31 - 1: no float or 8-bit path would carry them.
    ids = (random_ids(40, 60).astype(np.int64) * 127 % (2**31 - 1)).astype(np.int32)
    resized = ResizeTransform(40, 60, *size).apply_segmentation(ids)
    rows = [int((i + 0.5) * 40 / size[0]) for i in range(size[0])]
    columns = [int((j + 0.5) * 60 / size[1]) for j in range(size[1])]
    assert np.array_equal(resized, ids[np.ix_(rows, columns)])
    assert resized.dtype == np.int32


@pytest.mark.parametrize("size", [(80, 120), (20, 30), (120, 180)])
def test_resize_of_labels_equals_opencv_exact(size: tuple[int, int]) -> None:
    ids = random_ids(40, 60).astype(np.float64)
    expected = cv2.resize(ids, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    resized = ResizeTransform(40, 60, *size).apply_segmentation(ids)
    assert np.array_equal(resized, expected)


def test_resize_of_images_equals_upstream() -> None:
    image = colour_of(random_ids(40, 60))
    ours = ResizeShortestEdge(64, 1000, "choice").get_transform(image)
    theirs = T.ResizeShortestEdge(64, 1000, "choice").get_transform(image)
    assert type(ours) is ResizeTransform
    assert np.array_equal(ours.apply_image(image), theirs.apply_image(image))


def test_resize_keeps_a_thin_strip_alive() -> None:
    strip = np.zeros((1, 10_000, 3), np.uint8)
    tfm = ResizeShortestEdge(512, 1333, "choice").get_transform(strip)
    assert tfm.apply_image(strip).shape == (1, 1333, 3)


def test_resize_refuses_a_label_map_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"\(3, 3\).*\(4, 6\)"):
        ResizeTransform(4, 6, 8, 12).apply_segmentation(np.zeros((3, 3), np.int32))


@pytest.mark.parametrize("recipe", ["none", "flip", "dihedral"])
@pytest.mark.parametrize("shape", [(300, 260), (33, 35), (1, 1)])
def test_image_and_labels_stay_aligned(recipe: str, shape: tuple[int, int]) -> None:
    cfg = load_config(options=["INPUT.CELL.RECIPE", recipe, "INPUT.CROP.ENABLED", True])
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute", [64, 64]
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    augmentations = T.AugmentationList(build_augmentations(cfg, is_train=True))
    ids = random_ids(*shape)
    for seed in range(10):
        np.random.seed(seed)
        sample = CellAugInput(colour_of(ids), [ids, ids[::-1].copy()])
        augmentations(sample)
        assert sample.image.shape[:2] == sample.label_maps[0].shape
        assert np.array_equal(ids_of(sample.image), sample.label_maps[0])
        assert np.isin(sample.label_maps[1], ids).all()


def test_dihedral_reaches_all_eight_symmetries() -> None:
    ids = random_ids(5, 5)
    seen = set()
    for seed in range(200):
        np.random.seed(seed)
        sample = CellAugInput(colour_of(ids), [ids])
        T.AugmentationList(build_recipe("dihedral"))(sample)
        seen.add(sample.label_maps[0].tobytes())
    expected = {np.rot90(m, k).tobytes() for m in (ids, ids[:, ::-1]) for k in range(4)}
    assert seen == expected


def test_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="cellseg, dihedral, flip, none, report1"):
        build_recipe("report9")


def test_a_label_map_of_another_size_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        CellAugInput(np.zeros((4, 4, 3), np.uint8), [np.zeros((3, 3), np.int32)])


@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0])
def test_scale_is_the_resize_to_rounded_sides(factor: float) -> None:
    ids = random_ids(31, 44)
    cfg = load_config(options=["INPUT.CELL.SCALE", factor, "INPUT.MIN_SIZE_TEST", 0])
    sample = CellAugInput(colour_of(ids), label_maps=ids[None])
    T.AugmentationList(build_augmentations(cfg, is_train=False))(sample)
    height, width = round(31 * factor), round(44 * factor)
    assert sample.image.shape == (height, width, 3)
    expected = ResizeTransform(31, 44, height, width)
    assert np.array_equal(sample.image, expected.apply_image(colour_of(ids)))
    assert np.array_equal(sample.label_maps[0], expected.apply_segmentation(ids))


def test_a_scale_comes_after_the_crop() -> None:
    options = ["INPUT.CELL.SCALE", 2, "INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"]
    options += ["INPUT.CROP.SIZE", [20, 24], "INPUT.MIN_SIZE_TRAIN", (0,)]
    cfg = load_config(options=options)
    sample = CellAugInput(np.zeros((50, 60, 3), np.uint8), label_maps=random_ids(50, 60)[None])
    T.AugmentationList(build_augmentations(cfg, is_train=True))(sample)
    assert sample.image.shape in {(40, 48, 3), (48, 40, 3)}


@pytest.mark.parametrize("options", [["INPUT.CELL.SCALE", 2], ["INPUT.CELL.SCALE", 0]])
def test_a_scale_beside_a_fixed_size_is_refused(options: list) -> None:
    with pytest.raises(ConfigError, match=r"INPUT\.CELL\.SCALE is"):
        build_augmentations(load_config(options=options), is_train=False)
