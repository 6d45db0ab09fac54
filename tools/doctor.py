#!/usr/bin/env python
"""Say whether this machine and installation can train and predict, and what to do if not.

python tools/doctor.py --root my_cells

Looks at packages, Detectron2, GPU, memory and disk, at a data set if there is one, and trains and
predicts with a tiny model on data made for it; takes seconds, and leaves nothing behind.

Exit status: 0 if nothing is wrong (there may be warnings), 1 if something is, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="a data set to look at")
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="where results will go (here)"
    )
    args = parser.parse_args(arguments)
    try:
        # Not above: what is missing here is the first thing to be told.
        from cellseg_d2.doctor import OK, WARNING, WRONG, examine
    except ImportError as error:
        print(f"wrong    installation   {error}")
        print("                        -> run `make setup`, or install requirements.txt and then")
        print("                           run `python tools/install_detectron2.py`")
        return 1
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    counts = {OK: 0, WARNING: 0, WRONG: 0}
    for finding in examine(args.root, args.output):
        counts[finding.level] += 1
        print(f"{finding.level:<8} {finding.name:<14} {finding.text}", flush=True)
        if finding.advice:
            print(f"{'':<23} -> {finding.advice}", flush=True)
    print(f"{counts[OK]} ok, {counts[WARNING]} warnings, {counts[WRONG]} wrong")
    return 1 if counts[WRONG] else 0


if __name__ == "__main__":
    sys.exit(main())
