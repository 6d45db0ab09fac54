#!/usr/bin/env python
"""Train and evaluate a model on a folder of annotated TIFFs.

python train_net.py --config-file configs/mask_rcnn_R_50_FPN.yaml DATASETS.CELL.ROOT my_cells
python train_net.py --config-file output/config.yaml --resume
python train_net.py --config-file output/config.yaml --eval-only MODEL.WEIGHTS model.pth
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from cellseg_d2 import CellDataError, ConfigError, load_config
from cellseg_d2.checkpoint import CellCheckpointer
from cellseg_d2.config import require_fixed_normalization
from cellseg_d2.engine import (
    CellTrainer,
    check_evaluation_sets,
    normalize_by_dataset,
    register_datasets,
)
from cellseg_d2.evaluation import score_table, write_scores
from cellseg_d2.evaluation.score_file import SCORE_FILE


def setup(args: argparse.Namespace) -> CfgNode:
    """Load the config, register its data sets, and start the log in the output folder."""
    cfg = load_config(args.config_file, args.opts)
    register_datasets(cfg)
    check_evaluation_sets(cfg)
    if args.eval_only:
        require_fixed_normalization(cfg)
    else:
        normalize_by_dataset(cfg)
    cfg.freeze()
    if args.eval_only:
        # Not upstream's set-up: it would overwrite the config.yaml of the run that is evaluated.
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        for name in ("fvcore", "detectron2"):
            setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    else:
        default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="cellseg_d2")
    return cfg


def main(args: argparse.Namespace) -> Mapping[str, Any]:
    """Run one process of the job; return the scores on the main one."""
    cfg = setup(args)
    if args.eval_only:
        model = CellTrainer.build_model(cfg)
        CellCheckpointer(model, cfg.OUTPUT_DIR, complete=True).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        results = CellTrainer.test(cfg, model)
    else:
        trainer = CellTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        results = trainer.train()
    if results:
        write_scores(results, Path(cfg.OUTPUT_DIR) / SCORE_FILE)
        print(score_table(results))
    return results


def guarded_main(args: argparse.Namespace) -> int:
    """Run one process of the job; turn a fault of the user's into a line and an exit status."""
    try:
        main(args)
    except (CellDataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def worker(args: argparse.Namespace) -> None:
    """Run one of several processes, which can only tell how it ended by its exit status."""
    sys.exit(guarded_main(args))


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and launch the job; return the exit status."""
    args = default_argument_parser(epilog=__doc__).parse_args(arguments)
    if args.num_gpus * args.num_machines <= 1:
        return guarded_main(args)
    if args.num_gpus > torch.cuda.device_count():
        print(
            f"error: --num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()}",
            file=sys.stderr,
        )
        return 2
    try:
        launch(
            worker,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except ProcessExitedException as error:
        return error.exit_code or 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
