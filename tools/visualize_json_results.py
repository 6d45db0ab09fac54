#!/usr/bin/env python
"""Draw a submission's predictions over the images: one PNG for each image, and a contact sheet.

Exit status: 0 if all is well, 1 if the submission or an image has a fault (what is sound is drawn
all the same), 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from cellseg_d2.data import read_image
from cellseg_d2.data.layout import list_names
from cellseg_d2.errors import CellDataError
from cellseg_d2.export.image_index import index_images
from cellseg_d2.export.submission_reader import read_submission
from cellseg_d2.visualization.arguments import add_drawing_arguments, style_of
from cellseg_d2.visualization.galleries import Gallery
from cellseg_d2.visualization.overlay import cell_metadata, draw_predictions
from cellseg_d2.visualization.sheets import sheet_style


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with status 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--predictions", type=Path, required=True, help="test-results.json, or a zip of it"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument(
        "--id-map",
        type=Path,
        help="JSON of file names, ids and sizes; without it ids count from 1 in sorted order",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        help="predictions with a lower score are not drawn (default: %(default)s)",
    )
    add_drawing_arguments(parser)
    args = parser.parse_args(arguments)
    if not args.predictions.is_file():
        parser.error(f"--predictions {args.predictions}: no such file")
    if not 0 <= args.score_threshold <= 1:
        parser.error(f"--score-threshold is {args.score_threshold:g}; scores lie in [0, 1]")
    return args


def run(args: argparse.Namespace) -> int:
    """Draw the submission that the arguments name; return the number of faults on the way."""
    metadata, style = cell_metadata(args.class_names), style_of(args)
    images, faults = index_images(args.id_map, args.images)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    predictions, faulty = read_submission(
        args.predictions, images, len(args.class_names), args.score_threshold
    )
    if faulty:
        print(
            f"error: {faulty} predictions have faults and are not drawn; "
            "tools/validate_submission.py lists them",
            file=sys.stderr,
        )
    lacking = [image.name for i, image in images.items() if i in predictions and not image.path]
    if lacking:
        print(f"warning: not in {args.images}: {list_names(lacking)}", file=sys.stderr)
    broken = {fault.path for fault in faults}
    drawn = [
        image
        for image in images.values()
        if image.path and image.image_id in predictions and str(image.path) not in broken
    ][: args.limit]
    gallery = Gallery(args.output, ("image", "prediction"), metadata)
    for image in tqdm(drawn, unit="image", delay=1, disable=None):
        instances = predictions[image.image_id]
        pixels = read_image(image.path, args.channel_order)
        gallery.add_overlay(image.name, draw_predictions(pixels, instances, metadata, style))
        if gallery.sheet_has_room:
            small = draw_predictions(pixels, instances, metadata, sheet_style(style), legend=False)
            gallery.add_row(f"{image.name}: {len(instances)} cells", (pixels, small))
    if drawn:
        sheet = gallery.write_sheet()
        print(f"{len(drawn)} images drawn to {args.output / 'overlays'}, sheet {sheet}")
    else:
        print("error: no image of the submission is in the folder", file=sys.stderr)
    return len(faults) + faulty + (not drawn)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(arguments)
    try:
        return 1 if run(args) else 0
    except (CellDataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
