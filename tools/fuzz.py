#!/usr/bin/env python
"""Read many damaged and hostile files, and keep those that end in anything but a named error."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

# The targets are part of the tests, in the checkout that holds this file.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.fuzz.campaign import run_campaign  # noqa: E402
from tests.fuzz.worker import GOOD, TARGETS  # noqa: E402


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with status 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="files in all")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other files")
    parser.add_argument("--target", nargs="+", choices=TARGETS, metavar="NAME", help=_listing())
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument(
        "--output", type=Path, default=Path("output/fuzz"), help="folder of the files found"
    )
    args = parser.parse_args(arguments)
    if args.runs < 1 or args.workers < 1:
        parser.error("--runs and --workers must be at least 1")
    return args


def _listing() -> str:
    return f"of {', '.join(TARGETS)}; all without one"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(arguments)
    tallies = run_campaign(
        args.runs,
        args.seed,
        args.output,
        targets=args.target,
        workers=args.workers,
        seconds=60 * args.minutes,
    )
    bad = sorted({name for t in tallies.values() for name in t.outcomes} - set(GOOD))
    rows = [
        [name, *(tally.outcomes[outcome] for outcome in (*GOOD, *bad)), tally.outcomes.total()]
        for name, tally in tallies.items()
    ]
    rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    print(tabulate(rows, ["target", *GOOD, *bad, "files"]))
    findings = [path for tally in tallies.values() for path in tally.findings]
    for path in findings:
        print(f"fault: {path}", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
