"""One augmentation out of several."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform

from .photometric_base import check_share


class OneOf(T.Augmentation):
    """Apply one of several augmentations with probability ``prob``, and none otherwise.

    As in albumentations, the choices' own ``prob`` are their weights, and the one drawn is sure to
    be applied: with three of equal ``prob``, each comes with ``prob / 3``.

    Args:
        augmentations: the choices; one without an attribute ``prob`` weighs as much as prob 1.
        prob: probability that one of them is applied.

    Raises:
        ValueError: for no choices, none with a weight, or a probability outside 0 to 1.
    """

    def __init__(self, augmentations: Sequence[T.Augmentation], prob: float = 1.0) -> None:
        super().__init__()
        self.prob = check_share("prob", prob)
        weights = np.array([getattr(choice, "prob", 1.0) for choice in augmentations], np.float64)
        if weights.sum() <= 0:
            raise ValueError("no augmentation with a prob above 0 to choose from")
        self.augmentations = list(augmentations)
        self._shares = weights / weights.sum()
        self._choices = [_made_certain(choice) for choice in augmentations]

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw one and return its transform of ``image``, for choices that need no more than it."""
        choice = self._draw()
        return choice.get_transform(image) if choice else NoOpTransform()

    def __call__(self, aug_input: T.AugInput) -> Transform:
        """Draw one and apply it to ``aug_input``, of which it reads what it needs."""
        choice = self._draw()
        return choice(aug_input) if choice else NoOpTransform()

    def __repr__(self) -> str:
        # Upstream's would leave out a list that takes more than one line.
        return f"OneOf({self.augmentations}, prob={self.prob})"

    __str__ = __repr__

    def _draw(self) -> T.Augmentation | None:
        if self._rand_range() >= self.prob:
            return None
        return self._choices[np.random.choice(len(self._choices), p=self._shares)]


def _made_certain(augmentation: T.Augmentation) -> T.Augmentation:
    certain = copy.copy(augmentation)
    if hasattr(certain, "prob"):
        certain.prob = 1.0
    return certain
