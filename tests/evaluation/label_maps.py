"""Label maps that several test modules of evaluation share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SMALL = hnp.array_shapes(min_dims=2, max_dims=2, max_side=8)
PAIRS = SMALL.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.int32, shape, elements=st.integers(0, 5)),
        hnp.arrays(np.int32, shape, elements=st.integers(0, 5)),
    )
)
"""Two small label maps of one shape, of many contacts and of components torn apart."""


def disc_map(rng: np.random.Generator, count: int, size: tuple[int, int], radius=(4, 12)):
    """Discs of random places and sizes, the later ones on top."""
    y, x = np.mgrid[: size[0], : size[1]]
    label_map = np.zeros(size, dtype=np.int32)
    for i in range(1, count + 1):
        cy, cx = rng.uniform(0, size)
        label_map[(y - cy) ** 2 + (x - cx) ** 2 <= rng.uniform(*radius) ** 2] = i
    return label_map


def discs_and_guesses(seed: int, count: int = 60, size: tuple[int, int] = (160, 200)):
    """Discs, and the same shifted by 2 pixels with some missing and some spurious."""
    rng = np.random.default_rng(seed)
    gt = disc_map(rng, count, size)
    pred = np.roll(gt, (2, 1), (0, 1))
    pred[np.isin(pred, rng.choice(count, count // 5, replace=False) + 1)] = 0
    spurious = disc_map(rng, 8, size)
    return gt, np.where(spurious > 0, spurious + count, pred)


def relabelled(label_map: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same instances under other ids, with gaps, up to the largest one allowed."""
    ids = np.unique(label_map[label_map > 0])
    new = rng.choice(2**31 - 2, len(ids), replace=False) + 1
    if len(new):
        new[0] = 2**31 - 1
    result = np.zeros(label_map.shape, dtype=np.int64)
    for old, other in zip(ids, new, strict=True):
        result[label_map == old] = other
    return result
