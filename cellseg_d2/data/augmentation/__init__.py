"""Augmentations in Detectron2's terms, each exact on label maps whatever the ids."""

from .geometric import ResizeShortestEdge, ResizeTransform
from .inputs import CellAugInput
from .recipes import RECIPES, build_augmentations, build_recipe

__all__ = [
    "RECIPES",
    "CellAugInput",
    "ResizeShortestEdge",
    "ResizeTransform",
    "build_augmentations",
    "build_recipe",
]
