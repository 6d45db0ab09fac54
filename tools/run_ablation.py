#!/usr/bin/env python
"""Train the variants of an ablation, each with every seed, and tabulate their scores.

Example: tools/run_ablation.py --ablation configs/ablations/report1.yaml --output output/report1
DATASETS.CELL.ROOT my_cells

Each run is trained by train_net.py into OUTPUT/VARIANT/[SPLIT/]seedN. The same command again goes
on with what was interrupted or failed, and leaves alone what is finished. Where the file asks for
further evaluations, each finished run is evaluated so too. OUTPUT then holds table.md, table.csv
and curves.png. Exit status: 0 when every run is finished, 1 when one failed, 2
for wrong usage.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from cellseg_d2.engine.ablation import Failure, choose_runs, plan_runs, train_runs
from cellseg_d2.engine.ablation_evaluation import evaluate_run
from cellseg_d2.engine.ablation_file import read_ablation
from cellseg_d2.engine.ablation_table import draw_curves, write_tables
from cellseg_d2.errors import CellDataError, ConfigError

TRAIN_SCRIPT = Path(__file__).resolve().parent.parent / "train_net.py"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with status 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ablation", required=True, type=Path, metavar="FILE", help="YAML, see configs/ablations/"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--form", default="", help="a form of the file, as cpu; the full one else")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="VARIANT", help="train these variants only"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the runs and their commands, train nothing"
    )
    parser.add_argument(
        "options", nargs="*", metavar="KEY VALUE", help="config options for every run"
    )
    args = parser.parse_intermixed_args(arguments)
    # "--only sgd DATASETS.CELL.ROOT cells": a config key has a dot, a variant's name has none.
    first = next((i for i, word in enumerate(args.only) if "." in word), len(args.only))
    args.only, args.options = args.only[:first], [*args.only[first:], *args.options]
    return args


def main(
    arguments: Sequence[str] | None = None, train_script: str | PathLike[str] = TRAIN_SCRIPT
) -> int:
    """Run the command line; return the exit status.

    Args:
        arguments: of the command line.
        train_script: what trains a run.
    """
    args = parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    for name in ("ablation", "ablation_evaluation"):
        logging.getLogger(f"cellseg_d2.engine.{name}").setLevel(logging.INFO)
    # Each run's log says it too.
    logging.getLogger("cellseg_d2.config").setLevel(logging.ERROR)
    try:
        return run(args, train_script)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CellDataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def run(args: argparse.Namespace, train_script: str | PathLike[str]) -> int:
    """Do what the command line says; return the exit status."""
    ablation = read_ablation(args.ablation, args.form)
    runs = plan_runs(ablation, args.output, args.options)
    chosen = choose_runs(runs, args.only)
    if args.dry_run:
        for item in chosen:
            print(f"{item.folder}: {item.state}\n  {shlex.join(item.command(train_script))}")
        return 0
    failures: list[Failure] = []
    for item, failure in train_runs(chosen, train_script):
        found = [failure] if failure else evaluate_run(item, ablation.evaluations, train_script)
        failures += found
        for fault in found:
            print(f"error: {item.folder}: {fault.reason}; it ends with", file=sys.stderr)
            print("\n".join(f"  {line}" for line in fault.tail), file=sys.stderr)
        table = write_tables(args.output, ablation, runs, failures)
    draw_curves(args.output, runs)
    print(table, end="")
    return 1 if failures else 0


def _end(signum: int, frame: object) -> None:
    sys.exit(128 + signum)


if __name__ == "__main__":
    # Or else a training would outlive the tool that is ended so, and meet the next one's.
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
