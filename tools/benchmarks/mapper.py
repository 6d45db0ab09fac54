"""How the data path's cost depends on the number of cells."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from cellseg_d2 import load_config
from cellseg_d2.data import CellDatasetMapper, load_cell_dicts
from cellseg_d2.data.synthetic import make_image, make_label_map

from .timing import Comparison, median_seconds

SIZE = (1000, 1000)


def run() -> Iterator[Comparison]:
    """Yield each comparison as it is made."""
    yield mapper()


def mapper() -> Comparison:
    """One training sample of an image with 1,000 cells against the same image with 10."""
    cfg = load_config(options=["INPUT.MIN_SIZE_TRAIN", (0,), "SEED", 1, "MODEL.DEVICE", "cpu"])
    mapper = CellDatasetMapper(cfg, is_train=True)
    with tempfile.TemporaryDirectory() as name:
        image, _ = make_image(np.random.default_rng(0), SIZE, 600)
        records = {cells: _write(Path(name) / str(cells), image, cells) for cells in (10, 1000)}
        # In turns, so that a change in the machine's load meets both.
        times: dict[int, list[float]] = {10: [], 1000: []}
        for position in range(15):
            for cells, record in records.items():
                mapped, seconds = median_seconds(
                    lambda record=record, position=position: mapper(record, position), 1
                )
                times[cells].append(seconds)
                if len(mapped["instances"]) != cells:
                    raise AssertionError(f"{len(mapped['instances'])} instances of {cells}")
    return Comparison(
        "mapper: 1,000 cells",
        "the same image with 10 cells",
        float(np.median(times[10])),
        float(np.median(times[1000])),
        goal=1.3,
        at_most=True,
    )


def _write(folder: Path, image: np.ndarray, cells: int) -> dict[str, Any]:
    """Write the image with ``cells`` cells, half of them in each of two classes, and parse it.

    The files are those of the released data: an LZW image, and masks as plain float64.
    """
    folder.mkdir()
    tifffile.imwrite(folder / "image.tif", image, photometric="rgb", compression="lzw")
    labels = make_label_map(np.random.default_rng(cells), SIZE, cells)
    for number, mine in ((1, labels <= cells // 2), (2, labels > cells // 2)):
        tifffile.imwrite(
            folder / f"class{number}.tif", (labels * mine).astype(np.float64), rowsperstrip=2
        )
    (record,) = load_cell_dicts(folder)
    return record
