"""Command-line options that all drawing scripts share."""

from __future__ import annotations

import argparse
from pathlib import Path

from .colors import CLASS_NAMES
from .visualizer import LABELS, OverlayStyle


def add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is drawn, how large, and where to.

    Args:
        parser: to add them to.
    """
    default = OverlayStyle()
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--limit", type=positive_int, help="draw this many images only")
    parser.add_argument(
        "--channel-order", choices=("RGB", "BGR"), default="RGB", help="what the images hold"
    )
    parser.add_argument(
        "--class-names", nargs="+", default=list(CLASS_NAMES), metavar="NAME", help="in order"
    )
    parser.add_argument(
        "--labels",
        choices=LABELS,
        default=default.labels,
        help="draw the labels that have room, all, or none (default: %(default)s)",
    )
    parser.add_argument("--no-boxes", action="store_true", help="draw no boxes")
    parser.add_argument(
        "--alpha",
        type=_share,
        default=default.alpha,
        help="how much masks cover the image, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--outline-width",
        type=_width,
        default=default.outline_width,
        help="of masks, in pixels of the picture; 0 for none (default: %(default)s)",
    )
    parser.add_argument(
        "--scale", type=_scale, help="enlargement (default: small images by a whole number)"
    )


def style_of(args: argparse.Namespace) -> OverlayStyle:
    """The style that the options of `add_drawing_arguments` ask for."""
    return OverlayStyle(
        alpha=args.alpha,
        outline_width=args.outline_width,
        boxes=not args.no_boxes,
        labels=args.labels,
        scale=args.scale,
    )


def positive_int(text: str) -> int:
    """An argument that is at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be within 0 to 1")
    return value


def _width(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError("must be within 0 to 100")
    return value


def _scale(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 50:
        raise argparse.ArgumentTypeError("must be within 0.01 to 50")
    return value
