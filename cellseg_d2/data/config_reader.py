"""How a config says that images are read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from .tiff import read_image


def reading_options(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments of ``read_image`` that ``INPUT.CELL`` sets, by name.

    Args:
        cfg: reads ``CHANNEL_ORDER``, ``MAX_PIXELS`` and ``INTENSITY_RANGE`` of ``INPUT.CELL``.
    """
    return {
        "channel_order": cfg.INPUT.CELL.CHANNEL_ORDER,
        "max_pixels": cfg.INPUT.CELL.MAX_PIXELS,
        "intensity_range": tuple(cfg.INPUT.CELL.INTENSITY_RANGE) or None,
    }


def image_reader(cfg: CfgNode) -> Callable[[str | PathLike[str]], np.ndarray]:
    """Return ``read_image`` with the settings of a config.

    Args:
        cfg: see ``reading_options``.

    Returns:
        A function from a path to the image, (H, W, 3) uint8 RGB, that raises ``CellDataError``
        where it cannot be read. It can be pickled.
    """
    return partial(read_image, **reading_options(cfg))
