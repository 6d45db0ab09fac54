#!/usr/bin/env python
"""Compute again what made a training stop for a NaN or infinite loss or gradient."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg_d2.engine.fault_replay import replay
from cellseg_d2.errors import CellDataError, ConfigError

# So many parameters are named.
MOST_NAMED = 10


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with status 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dump", type=Path, help="nonfinite_<iteration>.pth of the training")
    parser.add_argument("--device", default="", help="to compute on; the training's if not given")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        result = replay(args.dump, args.device)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CellDataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for then, now in zip(result.recorded, result.losses, strict=False):
        for name in {**then, **now}:
            print(f"{name}: {now.get(name, float('nan')):g} (training: {then.get(name, '-')})")
    if result.error:
        print(f"the forward pass stopped: {result.error}")
    else:
        print(f"gradient norm: {result.gradient_norm:g}")
    # The losses come last in a model, and from there it spreads.
    for name in result.parameters[::-1][:MOST_NAMED]:
        print(f"gradient not finite: {name}")
    if len(result.parameters) > MOST_NAMED:
        print(f"and {len(result.parameters) - MOST_NAMED} more")
    return 0


if __name__ == "__main__":
    sys.exit(main())
