"""Images that memory does not hold, predicted all the same: fewer at a time, then in tiles."""

from __future__ import annotations

import gc
import logging

import numpy as np
import torch
from detectron2.structures import Instances

from ..data.tiff_window import ArrayWindows
from ..errors import MachineError
from ..machine_faults import is_out_of_memory
from .finder import Finder
from .tiling import predict_tiled

logger = logging.getLogger(__name__)

SMALLEST_TILE = 256
"""Side in pixels of the tiles that are tried last."""


class MemoryGuard:
    """A finder that asks another for less where that runs out of memory.

    Several images are asked for in halves, which changes no answer. One image is cut into tiles of
    half its longer side, of a quarter and so on, down to ``SMALLEST_TILE``; that is warned of: a
    network then sees less around the cells at the seams, and the cap on an image's cells holds for
    each tile.

    Args:
        find: the finder.
        overlap: pixels that neighbouring tiles share, as ``TEST.TILE.OVERLAP``.
        may_cut: whether tiles help: not for a model that resizes what it gets to one size, nor for
            one without masks, by which tiles are joined.
    """

    def __init__(self, find: Finder, overlap: int, may_cut: bool = True) -> None:
        self.find = find
        self.overlap = overlap
        self.may_cut = may_cut

    def __call__(self, images: list[np.ndarray]) -> list[Instances]:
        """Find the cells of some images, at least one.

        Raises:
            MachineError: where not even the smallest tiles fit.
        """
        answers = self._try(images)
        if answers is not None:
            return answers
        if len(images) > 1:
            half = len(images) // 2
            return [*self(images[:half]), *self(images[half:])]
        return [self._find_in_tiles(images[0])]

    def _find_in_tiles(self, image: np.ndarray) -> Instances:
        height, width = image.shape[:2]
        side = max(height, width)
        while self.may_cut and side > max(SMALLEST_TILE, self.overlap + 1):
            side = max(SMALLEST_TILE, self.overlap + 1, -(-side // 2))
            logger.warning(
                "%dx%d pixels do not fit into memory at once; trying tiles of %d (to begin with "
                "them, set TEST.TILE.SIZE %d)",
                *(height, width, side, side),
            )
            answer = self._try_tiles(image, side)
            if answer is not None:
                return answer
        advice = (
            "free memory, or lower MODEL.RPN.POST_NMS_TOPK_TEST"
            if self.may_cut
            else "lower INPUT.MIN_SIZE_TEST"
        )
        raise MachineError(
            f"an image of {height}x{width} pixels does not fit into memory"
            f"{f', not even in tiles of {side}' if self.may_cut else ''}; {advice}, or add "
            "MODEL.DEVICE cpu, which is slow"
        )

    def _try_tiles(self, image: np.ndarray, side: int) -> Instances | None:
        parts: list[Instances] = []
        try:
            windows = ArrayWindows(image)
            parts += predict_tiled(self.find, windows, side, self.overlap, batch_size=1)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            cells = Instances.cat(parts)
            return cells[cells.scores.argsort(descending=True, stable=True)]
        _let_go()
        return None

    def _try(self, images: list[np.ndarray]) -> list[Instances] | None:
        try:
            return self.find(images)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Not before the error is gone: its traceback holds what the model had computed.
        _let_go()
        return None


def _let_go() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
