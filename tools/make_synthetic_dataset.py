#!/usr/bin/env python
"""Make a data set of synthetic H&E-like tissue, in the layout of the released data.

Run again with the same options, it completes what was interrupted and does nothing else. With
--slide it writes one large tiled image instead, to measure time and memory on.
Exit status: 0 if the data set is there, 1 if it cannot be written, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset, write_slide
from cellseg_d2.errors import CellDataError


class SlideParameters(NamedTuple):
    """What --slide asks for."""

    size: tuple[int, int]
    seed: int


def parse_args(
    arguments: Sequence[str] | None = None,
) -> tuple[Path, SyntheticParameters | SlideParameters]:
    """Parse the command line; argparse ends the process with status 2 for wrong usage."""
    default = SyntheticParameters()
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="new or empty folder; with --slide the file to write",
        metavar="PATH",
    )
    parser.add_argument(
        "--slide",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="write one tiled BigTIFF of this size, without masks; of the other options only --seed"
        " counts",
    )
    parser.add_argument(
        "--train", type=int, default=default.train, metavar="N", help="training images"
    )
    parser.add_argument("--test", type=int, default=default.test, metavar="N", help="test images")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=default.size,
        metavar=("MIN", "MAX"),
        help="height and width in pixels, drawn between the two",
    )
    parser.add_argument(
        "--cells",
        type=int,
        nargs=2,
        default=default.cells,
        metavar=("MIN", "MAX"),
        help="cells to place in an image; fewer where there is no room",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=default.scale,
        help="cell size, relative to the released data",
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="same seed, same bytes")
    parser.add_argument(
        "--empty",
        type=int,
        default=default.empty,
        metavar="N",
        help="how many of the training images hold no cell",
    )
    parser.add_argument(
        "--class-weights",
        type=float,
        nargs=4,
        default=default.class_weights,
        metavar="W",
        help="how often each class comes, relative to the others; 0 leaves it out",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=default.overlap,
        help="largest share of a cell that others cover, 0 to 1",
    )
    parser.add_argument(
        "--test-labels",
        action="store_true",
        help="write the masks of the test images too, to test_ground_truth/",
    )
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    output, slide = options.pop("output"), options.pop("slide")
    if slide:
        if min(slide) < 1 or options["seed"] < 0:
            parser.error("--slide needs a height and width of at least 1, and a seed not below 0")
        return output, SlideParameters(tuple(slide), options["seed"])
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        return output, SyntheticParameters(**values)
    except ValueError as error:
        parser.error(str(error))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the data set and say what was done; returns the exit status."""
    output, parameters = parse_args(arguments)
    try:
        if isinstance(parameters, SlideParameters):
            write_slide(output, *parameters)
            print(f"{output}: a slide of {'×'.join(map(str, parameters.size))} pixels written")
            return 0
        written = write_dataset(output, parameters)
    except (CellDataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    total = parameters.train + parameters.test
    if written:
        print(f"{output}: {written} of {total} images written")
    else:
        print(f"{output}: all {total} images are already there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
