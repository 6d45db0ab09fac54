#!/usr/bin/env python
"""Convert weights of torchvision or ConvNeXt into a file for MODEL.WEIGHTS.

It takes torchvision's ResNet, ResNeXt and ConvNeXt classifiers, its maskrcnn_resnet50_fpn and
maskrcnn_resnet50_fpn_v2 detectors, and the checkpoints of facebookresearch/ConvNeXt.

Exit status: 0 if the file was written, 1 if the input cannot be converted, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg_d2.checkpoint.convert import BATCH_NORM_EPSILON, convert_file, report
from cellseg_d2.checkpoint.names import KINDS
from cellseg_d2.errors import CellDataError


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with status 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, metavar="FILE.pth")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.pkl")
    parser.add_argument(
        "--kind",
        choices=("auto", *KINDS),
        default="auto",
        help="what the file holds (default auto)",
    )
    parser.add_argument(
        "--epsilon",
        type=float,
        default=BATCH_NORM_EPSILON,
        help="what the file's BatchNorms add to the variance: 0 for torchvision's "
        f"maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth (default {BATCH_NORM_EPSILON:g}, for all others)",
    )
    args = parser.parse_args(arguments)
    if args.output.suffix != ".pkl":
        parser.error(f"--output is {args.output}; its name ends in .pkl, which says how to read it")
    if args.epsilon < 0:
        parser.error("--epsilon is negative")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a file; return the exit status."""
    args = parse_args(arguments)
    try:
        conversion = convert_file(args.input, args.output, args.kind, epsilon=args.epsilon)
    except (CellDataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report(conversion))
    print(f"written: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
