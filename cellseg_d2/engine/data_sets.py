"""The data sets and loaders of a run: its stream of batches, its evaluations, a training sample."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.utils import comm

from ..data import CellDatasetMapper, register_cell_dataset
from ..data.loader import (
    FaultRaisingLoader,
    KeepFaults,
    RepeatFactorSampler,
    StreamSampler,
    build_stream_loader,
)
from ..data.repeat_factors import image_repeat_factors
from ..errors import ConfigError

TRAIN_SAMPLE = "cells_train_sample"
"""The data set that ``register_train_sample`` makes."""


def build_sampler(cfg: CfgNode) -> StreamSampler:
    """Return the stream of positions over the images of ``DATASETS.TRAIN``.

    With ``DATASETS.CELL.REPEAT_THRESHOLD`` above 0, images of rare classes are repeated, and an
    epoch is that much longer.
    """
    dicts = data_set_dicts(cfg.DATASETS.TRAIN)
    stream: dict[str, Any] = {
        "batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "seed": cfg.SEED,
        "rank": comm.get_rank(),
        "world_size": comm.get_world_size(),
    }
    threshold = cfg.DATASETS.CELL.REPEAT_THRESHOLD
    if threshold == 0:
        return StreamSampler(len(dicts), **stream)
    return RepeatFactorSampler(image_repeat_factors(dicts, threshold), **stream)


def build_train_loader(cfg: CfgNode, sampler: StreamSampler) -> FaultRaisingLoader:
    """Return the endless loader of training batches."""
    return build_stream_loader(
        data_set_dicts(cfg.DATASETS.TRAIN),
        CellDatasetMapper(cfg, is_train=True),
        sampler,
        cfg.DATALOADER.NUM_WORKERS,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> FaultRaisingLoader:
    """Return the loader of one data set's images, each once, in order."""
    loader = build_detection_test_loader(
        without_annotations(data_set_dicts([dataset_name])),
        mapper=KeepFaults(CellDatasetMapper(cfg, is_train=False)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return FaultRaisingLoader(loader)


def without_annotations(dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return dicts that are light to send to the workers of a loader."""
    return [{k: v for k, v in d.items() if k != "annotations"} for d in dicts]


def register_train_sample(cfg: CfgNode) -> None:
    """Register ``TRAIN_SAMPLE``: ``TEST.TRAIN_IMAGES`` of the training images, drawn by seed.

    Raises:
        ConfigError: for a number below 1.
    """
    count = cfg.TEST.TRAIN_IMAGES
    if count < 1:
        raise ConfigError(f"TEST.TRAIN_IMAGES is {count}; at least 0")
    dicts = data_set_dicts(cfg.DATASETS.TRAIN)
    drawn = np.random.default_rng(cfg.SEED).permutation(len(dicts))[:count]
    sample = [dicts[index] for index in sorted(drawn)]
    register_cell_dataset(
        TRAIN_SAMPLE,
        cfg.DATASETS.CELL.ROOT,
        class_names=cfg.DATASETS.CELL.CLASS_NAMES,
        dicts=lambda: sample,
    )


def data_set_dicts(names: list[str] | tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the images of registered data sets.

    Raises:
        ConfigError: for a name that is not registered, or where there is no image.
    """
    unknown = [name for name in names if name not in DatasetCatalog]
    if unknown:
        raise ConfigError(
            f"no data set is called {', '.join(unknown)}; the config's are cells_train, cells_val, "
            "cells_trainval and cells_test"
        )
    dicts = [d for name in names for d in DatasetCatalog.get(name)]
    if not dicts:
        raise ConfigError(f"no images in {', '.join(names) or 'an empty DATASETS.TRAIN'}")
    return dicts


def check_evaluation_sets(cfg: CfgNode) -> None:
    """Refuse data sets that cannot be evaluated on, before anything is trained.

    Args:
        cfg: reads ``DATASETS.TEST``; empty means that nothing is evaluated.

    Raises:
        ConfigError: for a set without images or without annotations.
    """
    advice = "; change the split, or add DATASETS.TEST () to train without evaluation"
    for name in cfg.DATASETS.TEST:
        if name in DatasetCatalog and not DatasetCatalog.get(name):
            raise ConfigError(
                f"DATASETS.TEST names {name}, which holds no image "
                f"(DATASETS.CELL.VAL_FRACTION is {cfg.DATASETS.CELL.VAL_FRACTION}){advice}"
            )
        if any("annotations" not in item for item in data_set_dicts([name])):
            raise ConfigError(f"DATASETS.TEST names {name}, which has no annotations{advice}")
