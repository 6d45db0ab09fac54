#!/usr/bin/env python
"""Write one HTML page about a run: its scores, curves, and images on which cells can be shown.

Example: python tools/make_report.py --run output

The page needs no other file and no network. It is made from what training and evaluation left in
the run's folder, and from the data set's images: keep it where they may be seen.
Exit status: 0 when all is well, 1 on a fault in the data, 2 on wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg_d2.errors import CellDataError, ConfigError
from cellseg_d2.visualization.arguments import positive_int
from cellseg_d2.visualization.report import write_report
from cellseg_d2.visualization.report.sources import read_run


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with status 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, required=True, metavar="DIR", help="OUTPUT_DIR of a training"
    )
    parser.add_argument("--output", type=Path, help="the page (default: report.html in the run)")
    parser.add_argument(
        "--limit",
        type=positive_int,
        default=6,
        help="images to show, half of them the worst and half the best (default: %(default)s)",
    )
    parser.add_argument("--dataset", help="one of DATASETS.TEST (default: the first)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(arguments)
    output = args.output or args.run / "report.html"
    try:
        write_report(read_run(args.run, args.opts, args.dataset), output, args.limit)
    except (CellDataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
