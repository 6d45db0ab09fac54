"""The loader alone, and in training, by its number of workers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cellseg_d2 import load_config
from cellseg_d2.data import CellDatasetMapper, load_cell_dicts
from cellseg_d2.data.loader import StreamSampler, build_stream_loader
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset
from cellseg_d2.engine import CellTrainer, register_datasets

from .timing import Figure

IMAGES = 4
BATCH = 2
WARM_UP, BATCHES = 4, 12
"""Batches before the clock starts, of which each worker has begun two ahead, and after."""

TRAINED = Path(__file__).parents[2] / "configs" / "mask_rcnn_R_18_FPN_small.yaml"
STEPS_BEFORE, STEPS = 2, 8

RECIPES = ("none", "report1", "report5", "cellseg")
WORKERS = (0, 1, 2)


def run() -> Iterator[Figure]:
    """Yield each figure as it is measured, on images of 1000x1000 pixels with 600 cells."""
    parameters = SyntheticParameters(train=IMAGES, test=0, size=(1000, 1000), cells=(600, 600))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        write_dataset(root, parameters)
        yield from alone(root)
        yield from in_training(root, Path(folder) / "run")


def alone(root: Path) -> Iterator[Figure]:
    """Images per second for each recipe: reading, augmentation, packing."""
    dicts = load_cell_dicts(root / "train")
    for recipe in RECIPES:
        cfg = load_config(options=["INPUT.CELL.RECIPE", recipe, "MODEL.DEVICE", "cpu"])
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.SEED = (0,), 1
        mapper = CellDatasetMapper(cfg, is_train=True)
        for workers in WORKERS:
            sampler = StreamSampler(IMAGES, BATCH, seed=1)
            batches = iter(build_stream_loader(dicts, mapper, sampler, workers))
            for _ in range(WARM_UP):
                next(batches)
            begin = time.perf_counter()
            for _ in range(BATCHES):
                next(batches)
            rate = BATCH * BATCHES / (time.perf_counter() - begin)
            yield Figure(f"loader, {recipe}, {workers} workers", rate, "images/s")


def in_training(root: Path, output: Path) -> Iterator[Figure]:
    """The share of its time that a training step waits for its batch: the small model, on the CPU.

    On a machine whose cores are all the model's, workers take from the model what they give.
    """
    for workers in WORKERS:
        options = [
            *("DATASETS.CELL.ROOT", str(root), "DATASETS.TRAIN", ("cells_trainval",)),
            *("DATASETS.TEST", (), "OUTPUT_DIR", str(output / str(workers))),
            *("DATALOADER.NUM_WORKERS", workers, "SOLVER.MAX_ITER", STEPS_BEFORE + STEPS),
            *("MODEL.DEVICE", "cpu"),
        ]
        cfg = load_config(TRAINED, options)
        register_datasets(cfg)
        trainer = CellTrainer(cfg)
        trainer.train()
        waited, taken = (
            sum(seconds for seconds, _ in trainer.storage.history(name).values()[-STEPS:])
            for name in ("data_time", "time")
        )
        name = f"training step, {workers} workers"
        yield Figure(name, taken / STEPS, "s")
        yield Figure(f"{name}: share that waits for data", 100 * waited / taken, "%")
