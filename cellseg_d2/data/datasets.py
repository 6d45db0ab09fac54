"""A folder of annotated TIFFs as Detectron2's data set dicts, and in its catalogs."""

from __future__ import annotations

import contextlib
import gc
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from tqdm import tqdm

from ..errors import CellDataError
from .annotation_cache import AnnotationCache
from .image_dicts import collect_test_dicts, load_image_dicts, raise_faults
from .instances import ImageInstances, check_rule, label_components, read_instances
from .layout import ImageFolder, image_name, scan_root
from .tiff import DEFAULT_MAX_PIXELS

__all__ = [
    "load_cell_dicts",
    "load_image_dicts",
    "register_cell_dataset",
    "image_name",
    "label_components",
]

logger = logging.getLogger(__name__)


def load_cell_dicts(
    root: str | PathLike[str],
    instances: str = "ids",
    min_area: int = 1,
    *,
    num_classes: int = 4,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    cache_dir: str | PathLike[str] | None = None,
    split: str = "train",
) -> list[dict[str, Any]]:
    """Parses a data set into Detectron2 dicts, in one pass over each label map.

    Ids count the image folders of the whole root from 1 in the order of their names, so they do
    not depend on a later split, nor on the machine. Every image is tried before a fault is
    raised, and one faulty image raises: no data set shrinks without a word.

    Args:
        root: folder that holds ``train/`` (and, for the test split, ``test_release/`` and perhaps
            ``test_image_name_to_ids.json``), or image folders, or one image.
        instances: "ids" (each id is an instance) or "components" (each 8-connected component of
            the class's foreground is one, whatever its ids).
        min_area: instances of fewer pixels are dropped; the number is logged.
        num_classes: ``class1.tif`` … ``class{num_classes}.tif`` are categories 0 … num_classes − 1,
            whichever files are there.
        max_pixels: larger annotated images are refused.
        cache_dir: where parsed annotations are kept between runs; None for nowhere.
        split: "train" for the annotated images, "test" for those of ``test_release/``.

    Returns:
        One dict for each image, sorted by name, with ``file_name`` (str), ``image_id`` (int from
        1, or what the id map says), ``height``, ``width`` (pixels), and for annotated images

        - ``annotations``: dicts of ``bbox`` (floats, ``bbox_mode`` XYXY_ABS, x1 and y1 exclusive),
          ``category_id``, ``segmentation`` (COCO RLE, ``counts`` are bytes), ``area`` (pixels),
          ``iscrowd`` (0);
        - ``label_file_names``: {category: path} of the class files present;
        - ``instances``: the rule;
        - ``kept_ids``: {category: (N,) int32, ascending}, the ids in the label map (or in
          ``label_components`` of it) that are instances, in the order of the annotations.

    Raises:
        CellDataError: a file cannot be used; with several, the message lists them.
        ValueError: an argument is out of range.
    """
    check_rule(instances, min_area)
    if split == "test":
        dicts, faults = collect_test_dicts(root)
        raise_faults(root, faults)
        return dicts
    if split != "train":
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    layout = scan_root(root, num_classes)
    raise_faults(root, layout.faults)
    if layout.ignored:
        names = ", ".join(path.name for path in layout.ignored[:5])
        logger.warning("Ignored %d folders without TIFFs: %s", len(layout.ignored), names)
    cache = AnnotationCache(cache_dir, instances, min_area) if cache_dir else None
    dicts, faults, dropped = [], [], 0
    # On a terminal only, and only if it takes over a second.
    bar = tqdm(layout.folders, desc="Reading label maps", unit="image", delay=1, disable=None)
    for image_id, folder in enumerate(bar, 1):
        try:
            found = _read_cached(folder, instances, min_area, max_pixels, cache)
        except CellDataError as fault:
            faults.append(fault)
            continue
        dicts.append(_annotated_dict(folder, image_id, instances, found))
        dropped += sum(layer.num_dropped for layer in found.layers)
    raise_faults(root, faults)
    _log_summary(root, dicts, num_classes, dropped, min_area)
    return dicts


def register_cell_dataset(
    name: str,
    root: str | PathLike[str],
    *,
    class_names: Sequence[str],
    class_colors: Sequence[tuple[int, int, int]] | None = None,
    dicts: Callable[[], list[dict[str, Any]]] | None = None,
    **loader_options: Any,
) -> None:
    """Enters a data set in Detectron2's catalogs; nothing is read until it is asked for.

    Registering a name again with equal arguments changes nothing; with others, it replaces the
    data set and its metadata.

    Args:
        name: the data set's name in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        root: the data set's folder, see ``load_cell_dicts``.
        class_names: one for each category; there are as many classes as names.
        class_colors: RGB, 0–255, one for each category.
        dicts: gives the dicts in place of ``load_cell_dicts``, for example one side of a split; it
            must give the same every time.
        **loader_options: passed to ``load_cell_dicts``; not together with ``dicts``.

    Raises:
        ValueError: ``class_colors`` and ``class_names`` differ in length, the name belongs to a
            data set that was registered by other means, or an option goes with ``dicts``.
        TypeError: ``load_cell_dicts`` has no such option.
    """
    if class_colors is not None and len(class_colors) != len(class_names):
        raise ValueError(f"{len(class_colors)} colours for {len(class_names)} classes")
    if dicts is not None and loader_options:
        raise ValueError(f"{sorted(loader_options)} have no effect on dicts that are given")
    inspect.signature(load_cell_dicts).bind(root, **loader_options)  # a wrong name fails here
    metadata: dict[str, Any] = {
        "thing_classes": list(class_names),
        "evaluator_type": "cell",
        "root": os.fspath(root),
    }
    if class_colors is not None:
        metadata["thing_colors"] = [tuple(color) for color in class_colors]
    entry = _CatalogEntry(os.fspath(root), dicts, loader_options, metadata)
    if name in DatasetCatalog:
        present = DatasetCatalog[name]
        if not isinstance(present, _CatalogEntry):
            raise ValueError(f"the name {name!r} belongs to a data set of another kind")
        if present == entry:
            return
        DatasetCatalog.remove(name)
    if name in MetadataCatalog:
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, entry)
    MetadataCatalog.get(name).set(**metadata)


@dataclass(frozen=True)
class _CatalogEntry:
    """The function in the catalog; comparable, so that registering twice can be seen."""

    root: str
    dicts: Callable[[], list[dict[str, Any]]] | None
    options: dict[str, Any]
    metadata: dict[str, Any]

    def __call__(self) -> list[dict[str, Any]]:
        if self.dicts is not None:
            return self.dicts()
        num_classes = len(self.metadata["thing_classes"])
        return load_cell_dicts(self.root, **{"num_classes": num_classes, **self.options})


def _read_cached(
    folder: ImageFolder,
    instances: str,
    min_area: int,
    max_pixels: int,
    cache: AnnotationCache | None,
) -> ImageInstances:
    key = cache.key(folder) if cache else None
    if cache and key and (found := cache.load(key)) is not None:
        # The limit is not in the key: above it, reading the file gives the error.
        if found.height * found.width <= max_pixels:
            return found
    found = read_instances(folder, instances, min_area, max_pixels)
    if cache and key:
        cache.store(key, found)
    return found


def _annotated_dict(
    folder: ImageFolder, image_id: int, instances: str, found: ImageInstances
) -> dict[str, Any]:
    height, width = found.height, found.width
    with _no_garbage_collection():
        annotations = [
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": layer.category,
                "segmentation": {"size": [height, width], "counts": counts},
                "area": area,
                "iscrowd": 0,
            }
            for layer in found.layers
            for box, counts, area in zip(
                layer.boxes.astype(np.float64).tolist(),
                layer.counts,
                layer.areas.tolist(),
                strict=True,
            )
        ]
    return {
        "file_name": os.fspath(folder.image_file),
        "image_id": image_id,
        "height": height,
        "width": width,
        "annotations": annotations,
        "label_file_names": {k: os.fspath(path) for k, path in folder.label_files.items()},
        "instances": instances,
        "kept_ids": {layer.category: layer.ids for layer in found.layers},
    }


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Puts the collector off while thousands of small containers are made, none of them garbage.

    They would set off full collections, which walk every object of the libraries loaded: loading
    15,555 cached instances took 157 ms with them, 30 ms without.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _log_summary(
    root: str | PathLike[str],
    dicts: list[dict[str, Any]],
    num_classes: int,
    dropped: int,
    min_area: int,
) -> None:
    counts = np.zeros(num_classes, np.int64)
    for record in dicts:
        for category, ids in record["kept_ids"].items():
            counts[category] += len(ids)
    by_class = ", ".join(f"class{category + 1} {n:,}" for category, n in enumerate(counts))
    logger.info(
        "%s: %d images, %d instances (%s)", os.fspath(root), len(dicts), counts.sum(), by_class
    )
    if dropped:
        logger.warning("Dropped %d instances of fewer than %d pixels.", dropped, min_area)
