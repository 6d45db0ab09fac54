"""How often an image comes up in an epoch, so that rare classes are seen more often.

Gupta, Dollár, Girshick, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019,
section 5.2 and appendix.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError

logger = logging.getLogger(__name__)


def image_repeat_factors(dicts: Sequence[dict[str, Any]], threshold: float) -> np.ndarray:
    """Return LVIS' repeat factor of each image: the largest of its classes', or 1 without any.

    With f(c) the share of images that hold class c, its factor is
    ``r(c) = max(1, sqrt(threshold / f(c)))``. Instances that the instance rule dropped do not
    count.

    Args:
        dicts: N dicts with ``kept_ids``, as ``load_cell_dicts`` makes them.
        threshold: share of images, in [0, 1], below which a class is rare; 0 repeats nothing.

    Returns:
        (N,) float64, at least 1.

    Raises:
        ConfigError: for a threshold out of range.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"DATASETS.CELL.REPEAT_THRESHOLD is {threshold}; it lies in [0, 1]")
    classes = [[c for c, ids in record["kept_ids"].items() if len(ids)] for record in dicts]
    present, images = np.unique([c for held in classes for c in held], return_counts=True)
    of_class = np.maximum(1.0, np.sqrt(threshold * len(dicts) / images))
    by_class = dict(zip(present.tolist(), of_class.tolist(), strict=True))
    factors = np.array([max((by_class[c] for c in held), default=1.0) for held in classes])
    logger.info(
        "Repeat factors by category: %s; %.1f samples an epoch of %d images",
        ", ".join(f"{c}: {factor:.2f}" for c, factor in by_class.items()),
        factors.sum(),
        len(dicts),
    )
    return factors
