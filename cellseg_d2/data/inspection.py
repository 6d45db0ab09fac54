"""What is in a data set: counts, sizes, colours, oddities, and every file that cannot be used."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
from skimage.measure import label as label_equal_ids
from tqdm import tqdm

from ..errors import CellDataError
from ..structures.label_map_runs import encode_label_map
from .image_dicts import collect_test_dicts
from .instances import check_rule, label_components
from .layout import TEST_FOLDER, TRAIN_FOLDER, ImageFolder, scan_root
from .tiff import DEFAULT_MAX_PIXELS, read_image, read_label_map

logger = logging.getLogger(__name__)


@dataclass
class LayerFigures:
    """The instances of one class in one image, numbered as in its label map.

    Attributes:
        areas: (N,) int64, pixels.
        num_touching: instances that share a pixel or a side or corner of one with another
            instance of any class.
        num_split: ids with several 8-connected components.
        num_dropped: instances under the smallest area.
    """

    areas: np.ndarray
    num_touching: int
    num_split: int
    num_dropped: int


@dataclass
class ImageFigures:
    """One annotated image.

    Attributes:
        name: the image's name.
        height: pixels.
        width: pixels.
        layers: {category: figures}, for the class files present.
        overlap: pixels that belong to instances of more than one class.
        histogram: (3, 256) int64, pixels by channel (RGB) and value.
    """

    name: str
    height: int
    width: int
    layers: dict[int, LayerFigures]
    overlap: int
    histogram: np.ndarray


@dataclass
class Inspection:
    """A whole data set.

    Attributes:
        root: its folder.
        num_classes: the number of class files an image may have.
        images: the annotated images without fault, sorted by name.
        test_sizes: (height, width) of each test image without fault.
        faults: one error for each file that cannot be used.
        ignored: folders without any TIFF.
    """

    root: str
    num_classes: int
    images: list[ImageFigures] = field(default_factory=list)
    test_sizes: list[tuple[int, int]] = field(default_factory=list)
    faults: list[CellDataError] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)


def inspect_dataset(
    root: str | PathLike[str],
    instances: str = "ids",
    min_area: int = 1,
    *,
    num_classes: int = 4,
    channel_order: str = "RGB",
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Inspection:
    """Reads every file of a data set, pixels included, and goes on after a faulty one.

    Args:
        root: as for ``load_cell_dicts``; of a root with ``test_release/`` alone, only that is
            read.
        instances: the instance rule, "ids" or "components".
        min_area: instances of fewer pixels are counted as dropped.
        num_classes: as for ``load_cell_dicts``.
        channel_order: what the image files hold, "RGB" or "BGR".
        max_pixels: larger images are faults.

    Returns:
        The figures and the faults.

    Raises:
        CellDataError: there is neither an annotated nor a test image.
        ValueError: an argument is out of range.
    """
    check_rule(instances, min_area)
    inspection = Inspection(os.fspath(root), num_classes)
    has_test = (Path(root) / TEST_FOLDER).is_dir()
    try:
        layout = scan_root(root, num_classes)
    except CellDataError as fault:
        if not has_test:
            raise
        if (Path(root) / TRAIN_FOLDER).is_dir():
            inspection.faults.append(fault)
    else:
        inspection.faults += layout.faults
        inspection.ignored = layout.ignored
        for folder in tqdm(layout.folders, desc="Inspecting", delay=1, disable=None):
            image, faults = _inspect_image(folder, instances, min_area, channel_order, max_pixels)
            inspection.faults += faults
            if image is not None:
                inspection.images.append(image)
    if has_test:
        _inspect_test_images(root, channel_order, max_pixels, inspection)
    return inspection


def channel_statistics(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the mean and standard deviation of each channel over all pixels.

    Args:
        histogram: (C, 256), pixels by channel and value; sums of images' histograms pool them.

    Returns:
        Mean and population standard deviation, each (C,) float64, in 0–255. NaN without pixels.
    """
    values = np.arange(256.0)
    with np.errstate(invalid="ignore"):
        shares = histogram / histogram.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
    return mean, np.sqrt(variance)


def _inspect_test_images(
    root: str | PathLike[str], channel_order: str, max_pixels: int, inspection: Inspection
) -> None:
    try:
        dicts, faults = collect_test_dicts(root)
    except CellDataError as fault:
        inspection.faults.append(fault)
        return
    inspection.faults += faults
    for record in tqdm(dicts, desc="Inspecting test images", delay=1, disable=None):
        try:
            image = read_image(record["file_name"], channel_order, max_pixels=max_pixels)
        except CellDataError as fault:
            inspection.faults.append(fault)
        else:
            inspection.test_sizes.append((image.shape[0], image.shape[1]))


def _inspect_image(
    folder: ImageFolder, instances: str, min_area: int, channel_order: str, max_pixels: int
) -> tuple[ImageFigures | None, list[CellDataError]]:
    """Reads one image and all its label maps; None if any of them is at fault."""
    faults: list[CellDataError] = []
    size = None
    try:
        image = read_image(folder.image_file, channel_order, max_pixels=max_pixels)
        size = (image.shape[0], image.shape[1])
    except CellDataError as fault:
        faults.append(fault)
    label_maps: dict[int, np.ndarray] = {}
    for category, path in folder.label_files.items():
        try:
            label_map = read_label_map(path, max_pixels=max_pixels, expected_size=size)
        except CellDataError as fault:
            faults.append(fault)
        else:
            by_ids = instances == "ids"
            label_maps[category] = label_map if by_ids else label_components(label_map)
    if faults or size is None:
        return None, faults
    histogram = np.stack([np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)])
    layers = {}
    for category, label_map in label_maps.items():
        layers[category], label_maps[category] = _measure_layer(label_map, min_area)
    touching, overlap = _count_touching(label_maps)
    for category, count in touching.items():
        layers[category].num_touching = count
    return ImageFigures(folder.name, *size, layers, overlap, histogram), faults


def _measure_layer(label_map: np.ndarray, min_area: int) -> tuple[LayerFigures, np.ndarray]:
    """Measures one class's instances, all but ``num_touching``.

    Also returns the label map without the instances under ``min_area``.
    """
    found = encode_label_map(label_map)
    keep = found.areas >= min_area
    if not keep.all():
        label_map = np.where(np.isin(label_map, found.ids[~keep]), 0, label_map)
    parts = label_equal_ids(label_map, connectivity=2)
    id_of_part = np.zeros(parts.max() + 1, label_map.dtype)
    id_of_part[parts] = label_map
    _, num_parts = np.unique(id_of_part[1:], return_counts=True)
    num_split, num_dropped = int((num_parts > 1).sum()), int((~keep).sum())
    return LayerFigures(found.areas[keep], 0, num_split, num_dropped), label_map


def _count_touching(label_maps: dict[int, np.ndarray]) -> tuple[dict[int, int], int]:
    """Counts the instances that touch or overlap another, by category, and overlapping pixels.

    All layers are painted into one map. That hides no contact: an instance that is painted over
    overlaps the one above it, and so counts already.
    """
    if not label_maps:
        return {}, 0
    size = next(iter(label_maps.values())).shape
    painted = np.zeros(size, np.int64)
    depth = np.zeros(size, np.uint8)
    bounds = [0]
    for label_map in label_maps.values():
        foreground = label_map > 0
        depth += foreground
        painted[foreground] = label_map[foreground].astype(np.int64) + bounds[-1]
        bounds.append(bounds[-1] + int(label_map.max()))
    overlap = depth > 1
    found = [
        label_map[overlap & (label_map > 0)].astype(np.int64) + offset
        for label_map, offset in zip(label_maps.values(), bounds, strict=False)
    ]
    for one, other in (
        (painted[:, :-1], painted[:, 1:]),
        (painted[:-1], painted[1:]),
        (painted[:-1, :-1], painted[1:, 1:]),
        (painted[:-1, 1:], painted[1:, :-1]),
    ):
        contact = (one != other) & (one > 0) & (other > 0)
        found += [one[contact], other[contact]]
    touching = np.unique(np.concatenate(found))
    counts = np.diff(np.searchsorted(touching, bounds, side="right"))
    return dict(zip(label_maps, counts.tolist(), strict=True)), int(overlap.sum())
