"""Augmentation recipes by name, and the list that a config asks for."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ...errors import ConfigError
from .geometric import RandomRot90, ResizeShortestEdge

Recipe = Callable[[], list[T.Augmentation]]


def _none() -> list[T.Augmentation]:
    return []


def _flip() -> list[T.Augmentation]:
    return [T.RandomFlip(prob=0.5, horizontal=True, vertical=False)]


def _dihedral() -> list[T.Augmentation]:
    # A flip and 0 to 3 quarter turns reach all eight symmetries of the square, each with 1/8:
    # tissue on a slide has no up or down.
    return [T.RandomFlip(prob=0.5, horizontal=True, vertical=False), RandomRot90()]


RECIPES: dict[str, Recipe] = {"none": _none, "flip": _flip, "dihedral": _dihedral}


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
    """Return what a config does to an image: crop, resize and recipe, or resize alone in a test.

    The crop comes first, so that nothing is computed for pixels that are cut away.

    Args:
        cfg: reads ``INPUT.CROP``, ``INPUT.MIN_SIZE_*``, ``INPUT.MAX_SIZE_*`` and
            ``INPUT.CELL.RECIPE``. A ``MIN_SIZE`` of 0 keeps the image's size.
        is_train: whether to crop and to apply the recipe.
    """
    if not is_train:
        return [
            ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice"),
        ]
    augmentations: list[T.Augmentation] = []
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    augmentations.append(
        ResizeShortestEdge(
            cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        )
    )
    return augmentations + build_recipe(cfg.INPUT.CELL.RECIPE)
