#!/usr/bin/env python
"""Plot the losses, learning rate and AP of one or several trainings into one PNG."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg_d2.errors import CellDataError
from cellseg_d2.visualization.curves import plot_metrics

METRICS_FILE = "metrics.json"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with status 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help=f"output folder of a training, or its {METRICS_FILE}",
    )
    parser.add_argument("--output", type=Path, required=True, help="the PNG")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="of the runs in the legend; else their folders'"
    )
    args = parser.parse_args(arguments)
    if args.names and (len(args.names) != len(args.runs) or len(set(args.names)) < len(args.runs)):
        parser.error(f"--names: {len(args.runs)} runs need as many names, all different")
    return args


def label_runs(runs: Sequence[Path], names: Sequence[str] | None = None) -> dict[str, Path]:
    """Name each run by its folder, with as many folders above it as tell the runs apart.

    Args:
        runs: folders, or files in them.
        names: other names, one for each run.

    Returns:
        {label: metrics file}.
    """
    files = [run if run.is_file() else run / METRICS_FILE for run in runs]
    if names:
        return dict(zip(names, files, strict=True))
    folders = [file.resolve().parent.parts for file in files]
    for depth in range(1, max(map(len, folders)) + 1):
        labels = ["/".join(parts[-depth:]) for parts in folders]
        if len(set(labels)) == len(labels):
            return dict(zip(labels, files, strict=True))
    return {str(file): file for file in files}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(arguments)
    try:
        print(plot_metrics(label_runs(args.runs, args.names), args.output))
    except (CellDataError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
