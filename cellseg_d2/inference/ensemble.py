"""Several finders asked one after the other, and their answers merged: an ensemble, or TTA."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances

from ..errors import ConfigError
from .finder import Finder
from .fusion import METHODS, merge_answers


class MergedFinder:
    """Several finders as one.

    Args:
        finders: T of them, which count alike.
        method: see ``merge_answers``.
        threshold: see ``merge_answers``.
        max_detections: of an image; the best are kept.
    """

    def __init__(
        self, finders: Sequence[Finder], *, method: str, threshold: float, max_detections: int
    ) -> None:
        self.finders = list(finders)
        self.method, self.threshold = method, threshold
        self.max_detections = max_detections

    @classmethod
    def from_config(cls, cfg: CfgNode, finders: Sequence[Finder]) -> MergedFinder:
        """Read from a config how answers are merged.

        Args:
            cfg: reads ``TEST.MERGE`` and ``TEST.DETECTIONS_PER_IMAGE``.
            finders: see the class.

        Raises:
            ConfigError: for values out of range, or a model without masks.
        """
        merge = cfg.TEST.MERGE
        if merge.METHOD not in METHODS:
            raise ConfigError(f"TEST.MERGE.METHOD is {merge.METHOD!r}; of {', '.join(METHODS)}")
        if not 0 < merge.THRESHOLD <= 1:
            raise ConfigError(f"TEST.MERGE.THRESHOLD is {merge.THRESHOLD}; above 0, at most 1")
        if not cfg.MODEL.MASK_ON:
            raise ConfigError("answers are merged by their masks, and MODEL.MASK_ON is False")
        return cls(
            finders,
            method=merge.METHOD,
            threshold=merge.THRESHOLD,
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        )

    def __call__(self, images: list[np.ndarray]) -> list[Instances]:
        """Ask every finder about all images, then merge image by image."""
        answers = [find(images) for find in self.finders]
        return [
            merge_answers(
                [of_one[index] for of_one in answers],
                method=self.method,
                threshold=self.threshold,
                max_detections=self.max_detections,
            )
            for index in range(len(images))
        ]
