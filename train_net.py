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

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from cellseg_d2 import CellDataError, ConfigError, load_config
from cellseg_d2.checkpoint import CellCheckpointer
from cellseg_d2.engine import CellTrainer, normalize_by_dataset, register_datasets
from cellseg_d2.evaluation import score_table, write_scores
from cellseg_d2.evaluation.score_file import SCORE_FILE


def setup(args: argparse.Namespace) -> CfgNode:
    """Load the config, register its data sets, and start the log in the output folder."""
    cfg = load_config(args.config_file, args.opts)
    register_datasets(cfg)
    if not args.eval_only:
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


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and launch the job; return the exit status."""
    args = default_argument_parser(epilog=__doc__).parse_args(arguments)
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except CellDataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
