#!/usr/bin/env python
"""Print what a data set holds, and every file of it that cannot be used.

Exit status: 0 if every file is sound, 1 if there is a fault, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg_d2.data.inspection import inspect_dataset
from cellseg_d2.data.inspection_report import format_report, summarize
from cellseg_d2.data.instances import INSTANCE_RULES
from cellseg_d2.data.tiff import DEFAULT_MAX_PIXELS
from cellseg_d2.errors import CellDataError
from cellseg_d2.visualization.colors import class_colors
from cellseg_d2.visualization.dataset_figure import draw_inspection


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with status 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--root", type=Path, required=True, help="folder with train/, or with image folders"
    )
    parser.add_argument(
        "--instances",
        choices=INSTANCE_RULES,
        default="ids",
        help="what one instance is: each id (default), or each connected component",
    )
    parser.add_argument(
        "--min-area",
        type=_positive,
        default=1,
        metavar="PIXELS",
        help="drop instances of fewer pixels (default 1: none)",
    )
    parser.add_argument(
        "--channel-order",
        choices=("RGB", "BGR"),
        default="RGB",
        help="what the image files hold (default RGB); means are printed as RGB either way",
    )
    parser.add_argument(
        "--num-classes", type=_positive, default=4, metavar="N", help="class files (default 4)"
    )
    parser.add_argument(
        "--max-pixels",
        type=_positive,
        default=DEFAULT_MAX_PIXELS,
        metavar="N",
        help=f"refuse larger images (default {DEFAULT_MAX_PIXELS:,})",
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Inspect a data set; return the exit status."""
    args = parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        inspection = inspect_dataset(
            args.root,
            args.instances,
            args.min_area,
            num_classes=args.num_classes,
            channel_order=args.channel_order,
            max_pixels=args.max_pixels,
        )
    except CellDataError as error:
        print(error, file=sys.stderr)
        return 1
    summary = summarize(inspection)
    print(format_report(summary))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")
    if args.png and inspection.images:
        args.png.parent.mkdir(parents=True, exist_ok=True)
        draw_inspection(
            inspection,
            args.png,
            class_names=[row["name"] for row in summary["classes"]],
            class_colors=class_colors(args.num_classes),
        )
    elif args.png:
        print(f"{args.png} is not drawn: no annotated image is sound", file=sys.stderr)
    return 1 if inspection.faults else 0


if __name__ == "__main__":
    sys.exit(main())
