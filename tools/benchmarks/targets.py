"""Centre and boundary maps against one pass over the image per cell: 1000x1000 pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.ndimage as ndi

from cellseg_d2.data.dataset_mapper import build_instances
from cellseg_d2.data.synthetic import make_label_map
from cellseg_d2.data.target_generator import CenterBoundaryTargets
from cellseg_d2.structures import LabelMasks

from .timing import Comparison, median_seconds, peak_memory

SIZE = (1000, 1000)
SIGMA = 5.0


def run() -> Iterator[Comparison]:
    """Yield each comparison as it is made."""
    yield per_instance()
    yield many_cells()


def per_instance() -> Comparison:
    """600 cells against SciPy's dilation, erosion and centre of mass of each; equal to 1e-6."""
    label_map, masks = _cells(600)
    targets = CenterBoundaryTargets(SIGMA)

    def one_by_one() -> tuple[np.ndarray, np.ndarray]:
        points, boundary = np.zeros(SIZE, np.float32), np.zeros(SIZE, bool)
        for i in np.unique(label_map)[1:]:
            mask = label_map == i
            y, x = ndi.center_of_mass(mask)
            points[int(y), int(x)] = 1
            boundary |= ndi.binary_dilation(mask) ^ ndi.binary_erosion(mask)
        center = ndi.gaussian_filter(points, SIGMA)
        return center / center.max(), boundary

    our_memory = peak_memory(lambda: targets(masks))
    reference_memory = peak_memory(one_by_one)
    (center, boundary), reference_seconds = median_seconds(one_by_one, 1)
    found, our_seconds = median_seconds(lambda: targets(masks), 15)
    if not np.array_equal(found["boundary_map"].numpy(), boundary):
        raise AssertionError("the boundary maps differ")
    if not np.allclose(found["center_map"].numpy(), center, rtol=0, atol=1e-6):
        raise AssertionError("the centre maps differ")
    return Comparison(
        "centre and boundary maps",
        "SciPy, one pass per cell",
        reference_seconds,
        our_seconds,
        goal=20,
        reference_memory=reference_memory,
        our_memory=our_memory,
    )


def many_cells() -> Comparison:
    """1,000 cells against 10."""
    targets = CenterBoundaryTargets(SIGMA)
    masks = {cells: _cells(cells)[1] for cells in (10, 1000)}
    # In turns, so that a change in the machine's load meets both.
    times: dict[int, list[float]] = {10: [], 1000: []}
    for _ in range(25):
        for cells, instances in masks.items():
            _, seconds = median_seconds(lambda instances=instances: targets(instances), 1)
            times[cells].append(seconds)
    return Comparison(
        "centre and boundary maps: 1,000 cells",
        "an image with 10 cells",
        float(np.median(times[10])),
        float(np.median(times[1000])),
        goal=1.3,
        at_most=True,
    )


def _cells(count: int) -> tuple[np.ndarray, LabelMasks]:
    """Draw cells, half of them in each of two classes: one label map of all, and the instances."""
    label_map = make_label_map(np.random.default_rng(count), SIZE, count)
    classes = [label_map * (label_map <= count // 2), label_map * (label_map > count // 2)]
    ids = np.arange(1, count + 1)
    instances = build_instances(classes, [0, 1], {0: ids, 1: ids}, SIZE)
    if len(instances) != count:
        raise AssertionError(f"{len(instances)} instances of {count}")
    masks: LabelMasks = instances.gt_masks
    return label_map, masks
