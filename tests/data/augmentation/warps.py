"""Warps of every kind that several test modules try, and where their pixels come from."""

from __future__ import annotations

import numpy as np

from cellseg_d2.data.augmentation.warp import (
    Affine,
    ResizedCrop,
    Rotate,
    WarpPrimitive,
    Zoom,
)
from cellseg_d2.data.augmentation.warp_transforms import (
    AffineWarpTransform,
    DenseWarpTransform,
)

AFFINE: list[WarpPrimitive] = [
    Rotate(20, prob=1),
    Zoom(0.85, 1.15, prob=1),
    ResizedCrop((0.8, 1.0), (0.9, 1.1), prob=1),
    Affine(rotate=30, scale=(0.8, 1.2), shear=10, translate=0.1, prob=1),
]


def name(primitive: WarpPrimitive) -> str:
    return repr(primitive)


def backward_points(tfm: AffineWarpTransform | DenseWarpTransform) -> tuple[np.ndarray, np.ndarray]:
    """The transform's own backward map as (y, x) float64, for SciPy."""
    if isinstance(tfm, DenseWarpTransform):
        return tfm.map_y.astype(np.float64), tfm.map_x.astype(np.float64)
    ys, xs = np.mgrid[: tfm.mapping.size[0], : tfm.mapping.size[1]].astype(np.float64)
    m = tfm.mapping.matrix
    return m[1, 0] * xs + m[1, 1] * ys + m[1, 2], m[0, 0] * xs + m[0, 1] * ys + m[0, 2]
