#!/usr/bin/env python
"""Choose a trained model's thresholds on its validation images, and store them with it.

Example: python tools/tune_thresholds.py --config-file output/config.yaml
MODEL.WEIGHTS output/model_final.pth

The masks' AP50 decides on NMS, mask NMS, the cap on detections and the score threshold of the
answers, one after the other; panoptic quality (PQ) on the score from which cells belong to a label
map. Of mask NMS and the score threshold the one that leaves the fewest cells is taken among those
within .1 points of the best AP50, of the caps the highest of these, of the rest the best. The
config is written to tuned.yaml in the output folder, for predict.py and train_net.py --eval-only.

With TEST.TTA or TEST.TILE on, NMS and the score for label maps are tuned, in that mode. With
TEST.RESCORE.MASK the cap is not tuned.
Exit status: 0 when all is well, 1 on a fault in the data, 2 on wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

# Read when PyTorch is loaded: how long a thread that waits for others spins before it sleeps. GNU
# OpenMP's default is so long that two trainings beside each other all but stop.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from cellseg_d2 import CellDataError, ConfigError, load_config
from cellseg_d2.engine import check_evaluation_sets, register_datasets
from cellseg_d2.inference.tuned_config import check_tuned_path, tune_config, write_tuned_config
from cellseg_d2.inference.tuning import KEYS, Grid, Trial


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model's config")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="of tuned.yaml (default: OUTPUT_DIR)"
    )
    grid = Grid()
    for name, option, kind in (
        ("nms", "--nms", float),
        ("mask_nms", "--mask-nms", float),
        ("cap", "--caps", int),
        ("score", "--scores", float),
        ("label_score", "--label-scores", float),
    ):
        default = ",".join(f"{value:g}" for value in getattr(grid, name))
        parser.add_argument(
            option,
            dest=name,
            type=partial(_values, kind),
            default=default,
            metavar="X,…",
            help=f"values of {KEYS[name]} to try (default: {default})",
        )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    return parser.parse_args(arguments)


def _values(kind: Callable[[str], float], text: str) -> list[float]:
    try:
        values = sorted({kind(part) for part in text.split(",")})
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between") from error
    if values[0] < 0:
        raise argparse.ArgumentTypeError(f"{text!r} holds a negative number")
    return values


def table(trials: Sequence[Trial]) -> str:
    """Lay out what was tried, the chosen values marked."""
    rows = [
        [
            KEYS[trial.name],
            f"{trial.value:g}",
            trial.objective,
            f"{trial.result:.2f}",
            trial.cells,
            "chosen" if trial.chosen else "",
        ]
        for trial in trials
    ]
    return tabulate(rows, ["key", "value", "score", "percent", "cells", ""], disable_numparse=True)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse(arguments)
    setup_logger(name="cellseg_d2")
    try:
        cfg = load_config(args.config_file, args.opts)
        output = args.output or Path(cfg.OUTPUT_DIR)
        check_tuned_path(output, args.config_file)
        register_datasets(cfg)
        check_evaluation_sets(cfg)
        names = list(cfg.DATASETS.TEST)
        if not names:
            raise ConfigError("DATASETS.TEST names no data set to tune on; add cells_val")
        dicts = [item for name in names for item in DatasetCatalog.get(name)]
        grid = Grid(**{name: getattr(args, name) for name in KEYS})
        values, trials = tune_config(cfg, dicts, grid)
        chosen = [trial for trial in trials if trial.chosen]
        results = ", ".join(
            f"{trial.objective} {trial.result:.1f}" for trial in (chosen[-2], chosen[-1])
        )
        note = f"Thresholds tuned on {len(dicts)} images of {', '.join(names)}: {results}."
        path = write_tuned_config(output, args.config_file, cfg, args.opts, values, note)
    except (CellDataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(trials))
    print(f"{note} Wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run())
