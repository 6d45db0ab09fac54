"""Augmentations in Detectron2's terms, each exact on label maps whatever the ids."""

from .geometric import (
    RandomRot90,
    ResizeShortestEdge,
    ResizeTransform,
    Rot90Transform,
)
from .inputs import CellAugInput
from .recipes import RECIPES, build_augmentations, build_recipe

__all__ = [
    "RECIPES",
    "CellAugInput",
    "RandomRot90",
    "ResizeShortestEdge",
    "ResizeTransform",
    "Rot90Transform",
    "build_augmentations",
    "build_recipe",
]
