"""Augmentation recipes by name, and the list that a config asks for."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ...errors import ConfigError
from .choice import OneOf
from .copy_paste import build_copy_paste
from .filters import CLAHE, GaussianBlur, GaussianNoise, MedianBlur
from .geometric import ResizeShortestEdge, Scale
from .photometric import BrightnessContrast, ColorJitter, Gamma
from .stain import HEDJitter
from .warp import (
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
    Zoom,
)

Recipe = Callable[[], list[T.Augmentation]]


def _none() -> list[T.Augmentation]:
    return []


def _flip() -> list[T.Augmentation]:
    return [Warp([HFlip(0.5)])]


def _dihedral() -> list[T.Augmentation]:
    # A flip and 0 to 3 quarter turns reach all eight symmetries of the square, each with 1/8:
    # tissue on a slide has no up or down.
    return [Warp([HFlip(0.5), Rot90(1.0)])]


def _report1() -> list[T.Augmentation]:
    return [
        Warp([HFlip(0.5), VFlip(0.5), Rot90(0.7), Rotate(20, prob=0.3)]),
        ColorJitter(0.2, 0.2, 0.2, 0.05, prob=0.5),
        OneOf([GaussianNoise((10, 50)), GaussianBlur((3, 7))], prob=0.15),
    ]


def _report3() -> list[T.Augmentation]:
    return [Warp([Elastic(alpha=30, sigma=12, prob=0.3)])]


def _report4() -> list[T.Augmentation]:
    noise = (0.02 * 255) ** 2  # from a standard deviation of 2 % of full scale
    return [
        Warp(
            [
                HFlip(0.5),
                VFlip(0.3),
                Rotate(15, prob=0.4),
                Zoom(0.85, 1.15, prob=0.3),
                ResizedCrop(area=(0.8, 1.0), ratio=(0.9, 1.1), prob=0.3),
            ]
        ),
        # The table has four values for five names: the hue's .15 and the probability are choices.
        ColorJitter(0.3, 0.3, 0.3, 0.15, prob=0.3),
        GaussianNoise((noise, noise), prob=0.2),
        GaussianBlur((3, 3), sigma=(0.1, 1.0), prob=0.2),
        Gamma((0.8, 1.2), prob=0.3),
    ]


def _report5() -> list[T.Augmentation]:
    # The report warps last; here the warp comes first, with the flips, in one resampling.
    return [
        Warp(
            [
                HFlip(0.5),
                VFlip(0.5),
                OneOf(
                    [
                        Elastic(alpha=120, sigma=6),
                        GridDistortion(steps=5, limit=0.3),
                        OpticalDistortion(limit=2, shift=0.05),
                    ],
                    prob=0.5,
                ),
            ]
        ),
        OneOf([BrightnessContrast(0.2, 0.2), CLAHE((1, 4)), Gamma((0.8, 1.2))], prob=0.7),
        # blur_limit=5 is the largest kernel; the library draws 3 or 5.
        OneOf([GaussianBlur((3, 5)), MedianBlur((3, 5))], prob=0.3),
    ]


def _cellseg() -> list[T.Augmentation]:
    # This project's own: every orientation, mild changes of shape and scale, and the stain's own
    # variation in place of changes of colour that no slide shows, with which fewer cells were found
    # (RESULTS.md).
    return [
        Warp(
            [
                HFlip(0.5),
                Rot90(1.0),
                Affine(rotate=15, scale=(0.85, 1.2), shear=5, prob=0.5),
                Elastic(alpha=60, sigma=8, prob=0.2),
            ],
            border="background",
        ),
        HEDJitter(scale=0.05, shift=0.05, prob=0.7),
        BrightnessContrast(0.1, 0.1, prob=0.3),
        OneOf([GaussianBlur((3, 5)), GaussianNoise((10, 50))], prob=0.2),
    ]


RECIPES: dict[str, Recipe] = {
    "none": _none,
    "flip": _flip,
    "dihedral": _dihedral,
    "report1": _report1,
    "report2": _flip,  # the report names none: the default of its toolbox
    "report3": _report3,
    "report4": _report4,
    "report5": _report5,
    "cellseg": _cellseg,
}
"""What to do to an image in training, by the name that ``INPUT.CELL.RECIPE`` gives."""


def build_recipe(name: str) -> list[T.Augmentation]:
    """Return the augmentations of a recipe.

    Args:
        name: a key of ``RECIPES``.

    Raises:
        ConfigError: for an unknown name; the message lists the known ones.
    """
    if name not in RECIPES:
        raise ConfigError(
            f"INPUT.CELL.RECIPE is {name!r}; known recipes: {', '.join(sorted(RECIPES))}"
        )
    return RECIPES[name]()


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Return what a config does: crop, copy-paste, resize and recipe, or resize alone in a test.

    The crop comes first, so that nothing is computed for pixels that are cut away; cells are pasted
    before the resize, while the image has the scale that they were cut out at.

    Args:
        cfg: reads ``INPUT.CROP``, ``INPUT.MIN_SIZE_*``, ``INPUT.MAX_SIZE_*``, ``INPUT.CELL.SCALE``,
            ``INPUT.CELL.COPY_PASTE`` and ``INPUT.CELL.RECIPE``. A ``MIN_SIZE`` of 0 keeps the
            image's size.
        is_train: whether to crop and to apply the recipe.

    Raises:
        ConfigError: for a recipe that is unknown, or a scale beside a fixed size.
    """
    if not is_train:
        return _resize(cfg, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")
    augmentations: list[T.Augmentation] = []
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    augmentations += build_copy_paste(cfg)
    augmentations += _resize(
        cfg, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    )
    return augmentations + build_recipe(cfg.INPUT.CELL.RECIPE)


def _resize(
    cfg: CfgNode, min_size: int | tuple[int, ...], max_size: int, sampling: str
) -> list[T.Augmentation]:
    scale = cfg.INPUT.CELL.SCALE
    if scale == 1:
        return [ResizeShortestEdge(min_size, max_size, sampling)]
    sizes = (min_size,) if isinstance(min_size, int) else tuple(min_size)
    if scale <= 0 or any(sizes):
        raise ConfigError(
            f"INPUT.CELL.SCALE is {scale} with sizes {sizes}; a scale is above 0, and other than 1 "
            "only where INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST are 0"
        )
    return [Scale(scale)]
