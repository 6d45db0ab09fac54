#!/usr/bin/env python
"""Draw a data set's cells over its images: one PNG for each image, and a contact sheet.

With --recipe, draw instead each image under several draws of an augmentation recipe.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.data.catalog import Metadata
from tqdm import tqdm

from cellseg_d2.data import load_cell_dicts, read_image
from cellseg_d2.data.augmentation.recipes import RECIPES
from cellseg_d2.data.instances import INSTANCE_RULES
from cellseg_d2.data.layout import unique_image_names
from cellseg_d2.errors import CellDataError
from cellseg_d2.visualization.arguments import add_drawing_arguments, positive_int, style_of
from cellseg_d2.visualization.galleries import Gallery
from cellseg_d2.visualization.overlay import cell_metadata, draw_ground_truth
from cellseg_d2.visualization.png import save_png
from cellseg_d2.visualization.recipe_sheet import recipe_sheet
from cellseg_d2.visualization.sheets import sheet_style
from cellseg_d2.visualization.visualizer import OverlayStyle

Images = Iterable[tuple[str, dict[str, Any]]]


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with status 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--root", type=Path, required=True, help="folder with train/, or with image folders"
    )
    parser.add_argument(
        "--split", choices=("train", "test"), default="train", help="test images are drawn bare"
    )
    parser.add_argument(
        "--instances",
        choices=INSTANCE_RULES,
        default="ids",
        help="what an instance is: an id, or a connected component (default: %(default)s)",
    )
    parser.add_argument(
        "--min-area", type=positive_int, default=1, help="smaller instances are left out, in pixels"
    )
    parser.add_argument(
        "--recipe",
        choices=sorted(RECIPES),
        help="draw what this recipe makes of each image, to OUTPUT/recipes/RECIPE/",
    )
    parser.add_argument(
        "--draws", type=positive_int, default=8, help="of --recipe, for each image (default: 8)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of --recipe's draws, as SEED in training (default: 0)"
    )
    add_drawing_arguments(parser)
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    """Draw the data set that the arguments name."""
    metadata, style = cell_metadata(args.class_names), style_of(args)
    dicts = load_cell_dicts(
        args.root,
        args.instances,
        args.min_area,
        num_classes=len(args.class_names),
        split=args.split,
    )[: args.limit]
    names = unique_image_names(record["file_name"] for record in dicts)
    images = zip(names, tqdm(dicts, unit="image", delay=1, disable=None), strict=True)
    draw = _draw_recipe if args.recipe else _draw_gallery
    print(f"{len(dicts)} images drawn to {draw(args, images, metadata, style)}")


def _draw_recipe(
    args: argparse.Namespace, images: Images, metadata: Metadata, style: OverlayStyle
) -> str:
    folder = args.output / "recipes" / args.recipe
    for name, record in images:
        sheet = recipe_sheet(
            record,
            args.recipe,
            metadata,
            style,
            draws=args.draws,
            seed=args.seed,
            channel_order=args.channel_order,
        )
        save_png(folder / f"{name}.png", sheet)
    return f"{folder}, each with {args.draws} draws"


def _draw_gallery(
    args: argparse.Namespace, images: Images, metadata: Metadata, style: OverlayStyle
) -> str:
    gallery = Gallery(args.output, ("image", "ground truth"), metadata)
    for name, record in images:
        image = read_image(record["file_name"], args.channel_order)
        gallery.add_overlay(name, draw_ground_truth(image, record, metadata, style))
        if gallery.sheet_has_room:
            drawn = draw_ground_truth(image, record, metadata, sheet_style(style), legend=False)
            gallery.add_row(f"{name}: {len(record.get('annotations', []))} cells", (image, drawn))
    return f"{args.output / 'overlays'}, sheet {gallery.write_sheet()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    try:
        run(parse_args(arguments))
    except (CellDataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
