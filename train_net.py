#!/usr/bin/env python
"""Train and evaluate a model on a folder of annotated TIFFs.

python train_net.py --config-file configs/mask_rcnn_R_50_FPN.yaml DATASETS.CELL.ROOT my_cells
python train_net.py --config-file output/config.yaml --resume
python train_net.py --config-file output/config.yaml --eval-only MODEL.WEIGHTS model.pth

Several GPUs share a batch, SOLVER.IMS_PER_BATCH images in all:
python train_net.py --num-gpus 4 --config-file configs/mask_rcnn_R_50_FPN.yaml ...

So do several machines, with the same data and OUTPUT_DIR, best on a shared disk. On each, with its
own --machine-rank from 0, and the address of machine 0:
python train_net.py --num-gpus 4 --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:29500 ...

With MODEL.DEVICE cpu, --num-gpus is the number of processes on each machine's processor:
python train_net.py --num-gpus 2 --config-file output/config.yaml --resume MODEL.DEVICE cpu
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Read when PyTorch is loaded: how long a thread that waits for others spins before it sleeps. GNU
# OpenMP's default is so long that two trainings beside each other all but stop.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from cellseg_d2 import CellDataError, ConfigError, load_config
from cellseg_d2.checkpoint import CellCheckpointer
from cellseg_d2.config import require_fixed_normalization
from cellseg_d2.engine import (
    CellTrainer,
    check_evaluation_sets,
    normalize_by_dataset,
    register_datasets,
)
from cellseg_d2.engine.launch import WorkerError, launch_job
from cellseg_d2.engine.parallel import log_processes, on_main, require_agreement
from cellseg_d2.engine.run_folder import (
    begin_run,
    refuse_second_run,
    warn_of_changes,
    write_config,
)
from cellseg_d2.engine.run_record import write_run_record
from cellseg_d2.evaluation import score_table, write_scores
from cellseg_d2.evaluation.score_file import SCORE_FILE
from cellseg_d2.inference import CellPredictor
from cellseg_d2.inference.evaluation import evaluate_with_predictor, needs_predictor
from cellseg_d2.machine_faults import explain_run_faults


def setup(args: argparse.Namespace) -> CfgNode:
    """Load the config, register its data sets, and start the log in the output folder."""
    cfg = load_config(args.config_file, args.opts)
    if not args.eval_only:
        on_main(lambda: refuse_second_run(cfg.OUTPUT_DIR, args.resume))
    register_datasets(cfg)
    # The main process parses the data; the others then find it in the annotation cache.
    on_main(lambda: check_evaluation_sets(cfg))
    if args.eval_only:
        require_fixed_normalization(cfg)
    else:
        on_main(lambda: CellTrainer.build_sampler(cfg).epoch_size)
        normalize_by_dataset(cfg)
    cfg.freeze()
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    for name in ("fvcore", "detectron2", "cellseg_d2"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    if not args.eval_only:  # the config.yaml there is that of the run that is evaluated
        begin_run(cfg, args)
    log_processes(cfg.MODEL.DEVICE)
    if args.resume and not args.eval_only:
        on_main(lambda: warn_of_changes(cfg))
    return cfg


def main(args: argparse.Namespace) -> Mapping[str, Any]:
    """Run one process of the job; return the scores on the main one."""
    cfg = setup(args)
    with explain_run_faults(cfg):
        if args.eval_only:
            results = evaluate(cfg, args.resume)
        else:
            trainer = CellTrainer(cfg)
            trainer.resume_or_load(resume=args.resume)
            position = (trainer.start_iter, trainer.max_iter, trainer.sampler.epoch_size)
            require_agreement("first iteration, last one and images of an epoch", position)
            on_main(lambda: write_config(cfg))
            on_main(lambda: write_run_record(cfg, trainer.start_iter))
            results = trainer.train()
        if results:
            write_scores(results, Path(cfg.OUTPUT_DIR) / SCORE_FILE)
            print(score_table(results))
    return results


def evaluate(cfg: CfgNode, resume: bool) -> Mapping[str, Any]:
    """Score ``MODEL.WEIGHTS``, or the last checkpoint where there is one to resume from."""
    if needs_predictor(cfg):
        last = CellCheckpointer(torch.nn.Module(), cfg.OUTPUT_DIR)
        found = resume and last.has_checkpoint()
        weights = last.get_checkpoint_file() if found else cfg.MODEL.WEIGHTS
        return evaluate_with_predictor(cfg, CellPredictor(cfg, [weights]))
    model = CellTrainer.build_model(cfg)
    CellCheckpointer(model, cfg.OUTPUT_DIR, complete=True).resume_or_load(
        cfg.MODEL.WEIGHTS, resume=resume
    )
    return CellTrainer.test(cfg, model)


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run the job; return the exit status."""
    parser = default_argument_parser(epilog=__doc__)
    parser.set_defaults(dist_url="auto")
    try:
        launch_job(main, parser.parse_args(arguments))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CellDataError, OSError, FloatingPointError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
