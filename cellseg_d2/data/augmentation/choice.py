"""One augmentation out of several."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform

from .photometric_base import check_share

A = TypeVar("A", bound=T.Augmentation)


class OneOf(T.Augmentation, Generic[A]):
    """Apply one of several augmentations with probability ``prob``, and none otherwise.

    As in albumentations, the choices' own ``prob`` are their weights, and the one drawn is sure to
    be applied: with three of equal ``prob``, each comes with ``prob / 3``. A choice may be a
    ``OneOf`` again. One of warps may stand in a ``Warp``, which composes the one drawn with its
    other steps.

    Args:
        augmentations: the choices; one without an attribute ``prob`` weighs as much as prob 1.
        prob: probability that one of them is applied.

    Raises:
        ValueError: for no choices, none with a weight, or a probability outside 0 to 1.
    """

    def __init__(self, augmentations: Sequence[A | OneOf[A]], prob: float = 1.0) -> None:
        super().__init__()
        self.prob = check_share("prob", prob)
        weights = np.array([getattr(choice, "prob", 1.0) for choice in augmentations], np.float64)
        if weights.sum() <= 0:
            raise ValueError("no augmentation with a prob above 0 to choose from")
        self.augmentations = list(augmentations)
        self._shares = weights / weights.sum()
        self._choices = [_made_certain(choice) for choice in augmentations]

    def choose(self) -> A:
        """Draw which, whatever ``prob``; the one returned is sure to be applied."""
        choice = self._choices[np.random.choice(len(self._choices), p=self._shares)]
        return choice.choose() if isinstance(choice, OneOf) else choice

    def choose_or_skip(self) -> A | None:
        """Draw which with probability ``prob``, None otherwise."""
        return self.choose() if self._rand_range() < self.prob else None

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw one and return its transform of ``image``, for choices that need no more than it."""
        choice = self.choose_or_skip()
        return choice.get_transform(image) if choice else NoOpTransform()

    def __call__(self, aug_input: T.AugInput) -> Transform:
        """Draw one and apply it to ``aug_input``, of which it reads what it needs."""
        choice = self.choose_or_skip()
        return choice(aug_input) if choice else NoOpTransform()

    def __repr__(self) -> str:
        # Upstream's would leave out a list that takes more than one line.
        return f"OneOf({self.augmentations}, prob={self.prob})"

    __str__ = __repr__


def _made_certain(augmentation: A | OneOf[A]) -> A | OneOf[A]:
    certain = copy.copy(augmentation)
    if hasattr(certain, "prob"):
        certain.prob = 1.0
    return certain
