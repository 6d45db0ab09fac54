#!/usr/bin/env python
"""Checks a submission and prints what it holds and every fault.

Exit status: 0 without a fault, 1 with one, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg_d2.errors import CellDataError
from cellseg_d2.export.submission_check import check_submission


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--predictions", required=True, type=Path, help="test-results.json, or a zip of it"
    )
    parser.add_argument("--id-map", type=Path, help="JSON of file names, ids, heights and widths")
    parser.add_argument("--images", type=Path, help="folder of the images, to check mask sizes")
    parser.add_argument("--num-classes", type=int, default=4, help="category ids are 1 to this")
    parser.add_argument(
        "--require-all", action="store_true", help="an image without predictions is a fault"
    )
    args = parser.parse_args(argv)
    if not args.predictions.is_file():
        parser.error(f"--predictions {args.predictions}: no such file")
    if args.id_map and not args.id_map.is_file():
        parser.error(f"--id-map {args.id_map}: no such file")
    if args.images and not args.images.is_dir():
        parser.error(f"--images {args.images}: no such folder")
    if args.num_classes < 1:
        parser.error("--num-classes must be at least 1")
    if args.require_all and not (args.id_map or args.images):
        parser.error("--require-all needs --id-map or --images")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check; returns the exit status."""
    args = parse_args(argv)
    try:
        report = check_submission(
            args.predictions,
            id_map=args.id_map,
            images=args.images,
            num_classes=args.num_classes,
            require_all=args.require_all,
        )
    except (CellDataError, OSError) as error:
        print(f"fault: {error}", file=sys.stderr)
        return 1
    for line in report.lines():
        print(line)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
