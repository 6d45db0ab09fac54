"""Images per second of the whole loader, by its number of workers: 1000x1000 pixels, 600 cells."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cellseg_d2 import load_config
from cellseg_d2.data import CellDatasetMapper, load_cell_dicts
from cellseg_d2.data.loader import StreamSampler, build_stream_loader
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset

from .timing import Figure

IMAGES = 4
BATCH = 2
WARM_UP, BATCHES = 4, 12
"""Batches before the clock starts, of which each worker has begun two ahead, and after."""

RECIPES = ("none", "report1", "report5", "cellseg")


def run() -> Iterator[Figure]:
    """Yield a figure for each recipe and number of workers: reading, augmentation, packing."""
    parameters = SyntheticParameters(train=IMAGES, test=0, size=(1000, 1000), cells=(600, 600))
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "data", parameters)
        dicts = load_cell_dicts(Path(folder) / "data" / "train")
        for recipe in RECIPES:
            cfg = load_config(options=["INPUT.CELL.RECIPE", recipe, "MODEL.DEVICE", "cpu"])
            cfg.INPUT.MIN_SIZE_TRAIN, cfg.SEED = (0,), 1
            mapper = CellDatasetMapper(cfg, is_train=True)
            for workers in (0, 1, 2):
                sampler = StreamSampler(IMAGES, BATCH, seed=1)
                batches = iter(build_stream_loader(dicts, mapper, sampler, workers))
                for _ in range(WARM_UP):
                    next(batches)
                begin = time.perf_counter()
                for _ in range(BATCHES):
                    next(batches)
                rate = BATCH * BATCHES / (time.perf_counter() - begin)
                yield Figure(f"loader, {recipe}, {workers} workers", rate, "images/s")
