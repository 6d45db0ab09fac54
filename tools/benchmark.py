#!/usr/bin/env python
"""Measure the program against named references, and exit 1 where a stated goal is missed.

Ratios of medians, results asserted equal; of recipes that draw, ratios of means over draws, their
ids asserted. Figures without a reference are listed below the ratios.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from benchmarks import (
    augmentation,
    detector,
    evaluation,
    growth,
    hooks,
    inference,
    loader,
    mapper,
    structures,
    targets,
    tiling,
    whole,
)
from benchmarks.timing import Comparison, Figure
from tabulate import tabulate
from tqdm import tqdm

# A new one is a module of benchmarks/ in the import above, and a line here.
BENCHMARKS: dict[str, Callable[..., Iterator[Comparison | Figure]]] = {
    "structures": structures.run,
    "mapper": mapper.run,
    "targets": targets.run,
    "augmentation": augmentation.run,
    "loader": loader.run,
    "evaluation": evaluation.run,
    "inference": inference.run,
    "hooks": hooks.run,
    "tiling": tiling.run,
    "whole": whole.run,
    "detector": detector.run,
    "growth": growth.run,
}

HEADER = ("what", "against", "its ms", "our ms", "ratio", "goal", "its peak MiB", "our peak MiB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse_args(arguments)
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"torch {torch.__version__}, NumPy {np.__version__}"
    )
    missed = []
    for name in options.benchmarks or BENCHMARKS:
        # A table each, as soon as it is measured: all of them take a while.
        settings = {"plot": options.plot} if name == "growth" else {}
        results = list(
            tqdm(BENCHMARKS[name](**settings), name, unit="result", delay=1, disable=None)
        )
        comparisons = [r for r in results if isinstance(r, Comparison)]
        figures = [[r.name, f"{r.value:.3g} {r.unit}"] for r in results if isinstance(r, Figure)]
        print(f"\n{name}")
        if comparisons:
            print(
                tabulate([row(c) for c in comparisons], HEADER, disable_numparse=True), flush=True
            )
        if figures:
            print(tabulate(figures, ("what", "measured"), disable_numparse=True), flush=True)
        missed += [c for c in comparisons if not c.reached]
    for c in missed:
        ratios = f"{c.ratio:.2f}" + (f", memory {c.memory_ratio:.2f}" if c.memory_goal else "")
        print(f"missed: {c.name}: {ratios}, {goal(c)}", file=sys.stderr)
    return 1 if missed else 0


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with status 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "benchmarks", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all without one"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of PyTorch and OpenCV, on both sides (default 1: on a shared machine more wait)",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="where to draw what the benchmark growth measures"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.benchmarks) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    return options


def row(result: Comparison) -> list[str]:
    """Return what the table says of a comparison."""
    return [
        result.name,
        result.reference,
        f"{1e3 * result.reference_seconds:.1f}",
        f"{1e3 * result.our_seconds:.2f}",
        f"{result.ratio:.2f}" if result.ratio < 10 else f"{result.ratio:.0f}",
        goal(result) + ("" if result.reached else "  MISSED"),
        *(
            "" if math.isnan(memory) else f"{memory:.0f}"
            for memory in (result.reference_memory, result.our_memory)
        ),
    ]


def goal(result: Comparison) -> str:
    """Return the goal in words."""
    words = f"at {'most' if result.at_most else 'least'} {result.goal:g}"
    return words + (f", memory at least {result.memory_goal:g}" if result.memory_goal else "")


if __name__ == "__main__":
    sys.exit(main())
