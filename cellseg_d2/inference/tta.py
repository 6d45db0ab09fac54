"""Test-time augmentation: the same image flipped, turned and scaled, each answer mapped back.

A model sees a cell's surroundings in one direction only; the answers to several views, merged
(:mod:`.fusion`), agree on cells and not on mistakes. Masks are mapped back exactly, see
:mod:`.dihedral`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances

from ..errors import ConfigError
from .dihedral import SYMMETRIES
from .finder import Finder


class ScalableFinder(Protocol):
    """A finder that can look at its images at another scale."""

    def __call__(self, images: list[np.ndarray], scale: float = 1.0) -> list[Instances]:
        """Answer in the coordinates of the images, whatever the scale."""


class TurnedFinder:
    """Shows a finder its images in one of the square's symmetries; a finder itself.

    Args:
        find: what is given the transformed images.
        transform: of ``SYMMETRIES``.
    """

    def __init__(self, find: Finder, transform: str) -> None:
        self.find = find
        self.symmetry = SYMMETRIES[transform]

    def __call__(self, images: list[np.ndarray]) -> list[Instances]:
        """Find cells; the answers are in the coordinates of ``images``."""
        answers = self.find([self.symmetry.apply(image) for image in images])
        return [self.symmetry.undo(answer) for answer in answers]


def augmented_finders(
    find: ScalableFinder, transforms: Sequence[str], scales: Sequence[float]
) -> list[Finder]:
    """Return a finder for each view of an image: every transform at every scale.

    Args:
        find: sees the views.
        transforms: of ``SYMMETRIES``.
        scales: of the image's side over its own, positive.
    """
    return [
        TurnedFinder(partial(find, scale=scale), transform)
        for scale in scales
        for transform in transforms
    ]


def views_of(cfg: CfgNode) -> tuple[list[str], list[float]]:
    """Read from a config which views of an image are shown.

    Args:
        cfg: reads ``TEST.TTA``.

    Returns:
        Transforms and scales; ``["none"]`` and ``[1.0]`` where ``TEST.TTA.ENABLED`` is off.

    Raises:
        ConfigError: for an unknown or repeated transform, a scale that is not positive, or none.
    """
    tta = cfg.TEST.TTA
    if not tta.ENABLED:
        return ["none"], [1.0]
    transforms, scales = list(tta.TRANSFORMS), [float(scale) for scale in tta.SCALES]
    unknown = [name for name in transforms if name not in SYMMETRIES]
    if unknown or not transforms or len(set(transforms)) < len(transforms):
        raise ConfigError(
            f"TEST.TTA.TRANSFORMS is {transforms}; it names some of {', '.join(SYMMETRIES)}, each "
            "once"
        )
    if not scales or min(scales) <= 0 or len(set(scales)) < len(scales):
        raise ConfigError(f"TEST.TTA.SCALES is {scales}; it holds positive numbers, each once")
    return transforms, scales
