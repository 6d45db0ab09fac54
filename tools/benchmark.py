#!/usr/bin/env python
"""Measure the program against named references.

Ratios of medians, results asserted equal; of recipes that draw, ratios of means over draws, their
ids asserted. Figures without a reference are listed below the ratios.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import torch
from benchmarks import augmentation, loader, mapper, structures, targets
from benchmarks.timing import Comparison, Figure
from tabulate import tabulate

PARTS: dict[str, Callable[[], Iterator[Comparison] | Iterator[Figure]]] = {
    "structures": structures.run,
    "mapper": mapper.run,
    "targets": targets.run,
    "augmentation": augmentation.run,
    "loader": loader.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without one"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of PyTorch and OpenCV, on both sides (default 1: on a shared machine more wait)",
    )
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"torch {torch.__version__}, NumPy {np.__version__}"
    )
    rows, figures = [], []
    for part in options.parts or PARTS:
        for result in PARTS[part]():
            if isinstance(result, Figure):
                figures.append([result.name, f"{result.value:.3g} {result.unit}"])
                continue
            limit = ("at most " if result.at_most else "at least ") + f"{result.goal:g}"
            rows.append(
                [
                    result.name,
                    result.reference,
                    f"{1e3 * result.reference_seconds:.1f}",
                    f"{1e3 * result.our_seconds:.2f}",
                    f"{result.ratio:.2f}" if result.ratio < 10 else f"{result.ratio:.0f}",
                    limit + ("" if result.reached else "  MISSED"),
                    f"{result.reference_memory:.0f}",
                    f"{result.our_memory:.0f}",
                ]
            )
    header = [
        "what",
        "against",
        "its ms",
        "our ms",
        "ratio",
        "goal",
        "its peak MiB",
        "our peak MiB",
    ]
    if rows:
        print(tabulate(rows, header, disable_numparse=True))
    if figures:
        print(tabulate(figures, ["what", "measured"], disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
