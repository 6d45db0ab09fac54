"""What stands before a run: the data sets of a config, registered and split."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from ..data import load_cell_dicts, register_cell_dataset
from ..data.config_reader import image_reader
from ..data.inspection import channel_statistics
from ..data.split import split_dicts
from ..errors import CellDataError, ConfigError
from ..visualization.colors import class_colors
from .parallel import on_main

logger = logging.getLogger(__name__)

_CHANNELS = 3

Dicts = list[dict[str, Any]]


def register_datasets(cfg: CfgNode) -> None:
    """Register ``cells_train``, ``cells_val``, ``cells_trainval`` and ``cells_test``.

    Nothing is read until a data set is asked for; then the root is parsed once for all of them.

    Args:
        cfg: reads ``DATASETS.CELL``, ``INPUT.CELL.MAX_PIXELS`` and ``OUTPUT_DIR``.

    Raises:
        CellDataError: where ``DATASETS.CELL.ROOT`` is not a folder.
    """
    cell = cfg.DATASETS.CELL
    if not cell.ROOT or not Path(cell.ROOT).is_dir():
        raise CellDataError(
            cell.ROOT or '""',
            "no such folder" if cell.ROOT else "no folder",
            "the data set's folder in DATASETS.CELL.ROOT",
            "add DATASETS.CELL.ROOT /path/to/folder to the command, or set it in the config",
        )
    options: dict[str, Any] = {
        "num_classes": len(cell.CLASS_NAMES),
        "max_pixels": cfg.INPUT.CELL.MAX_PIXELS,
    }

    @functools.cache
    def all_annotated() -> Dicts:
        return load_cell_dicts(
            cell.ROOT,
            cell.INSTANCES,
            cell.MIN_AREA,
            cache_dir=cell.CACHE_DIR or Path(cfg.OUTPUT_DIR) / "annotation_cache",
            **options,
        )

    @functools.cache
    def split() -> tuple[Dicts, Dicts]:
        return split_dicts(
            all_annotated(),
            fraction=cell.VAL_FRACTION,
            seed=cell.SPLIT_SEED,
            names=list(cell.VAL_NAMES),
            group_pattern=cell.GROUP_PATTERN,
        )

    @functools.cache
    def test() -> Dicts:
        return load_cell_dicts(cell.ROOT, split="test", **options)

    loaders: dict[str, Callable[[], Dicts]] = {
        "cells_train": lambda: split()[0],
        "cells_val": lambda: split()[1],
        "cells_trainval": all_annotated,
        "cells_test": test,
    }
    for name, dicts in loaders.items():
        register_cell_dataset(
            name,
            cell.ROOT,
            class_names=cell.CLASS_NAMES,
            class_colors=class_colors(len(cell.CLASS_NAMES)),
            dicts=dicts,
        )


def normalize_by_dataset(cfg: CfgNode) -> None:
    """Set ``PIXEL_MEAN`` and ``PIXEL_STD`` to the training images' own, where the config asks so.

    The config then holds plain numbers and no longer asks, so that the one saved with the run
    predicts as it was trained. Of several processes, the main one reads the images for all.

    Args:
        cfg: with its data sets registered; changed in place.

    Raises:
        CellDataError: where an image cannot be read.
        ConfigError: where the training images are all of one colour in a channel.
    """
    if cfg.INPUT.CELL.NORMALIZATION != "dataset":
        return
    mean, std = on_main(lambda: _training_statistics(cfg))
    if cfg.INPUT.FORMAT == "BGR":
        mean, std = mean[::-1], std[::-1]
    cfg.MODEL.PIXEL_MEAN = [round(float(value), 3) for value in mean]
    cfg.MODEL.PIXEL_STD = [round(float(value), 3) for value in std]
    cfg.INPUT.CELL.NORMALIZATION = "config"
    logger.info(
        "normalising by the training images: mean %s, standard deviation %s",
        cfg.MODEL.PIXEL_MEAN,
        cfg.MODEL.PIXEL_STD,
    )


def _training_statistics(cfg: CfgNode) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each channel of the training images, RGB."""
    read = image_reader(cfg)
    histogram = np.zeros((_CHANNELS, 256), np.int64)
    for name in cfg.DATASETS.TRAIN:
        for item in tqdm(DatasetCatalog.get(name), desc="Reading colours", delay=1, disable=None):
            image = read(item["file_name"])
            for channel in range(_CHANNELS):
                histogram[channel] += np.bincount(image[:, :, channel].ravel(), minlength=256)
    mean, std = channel_statistics(histogram)
    if not (std > 0).all():
        raise ConfigError(
            "INPUT.CELL.NORMALIZATION is dataset, but a channel of the training images has no "
            f"variation (standard deviations {std.tolist()}); use config"
        )
    return mean, std
