#!/usr/bin/env python
"""Find the cells of TIFF images and write the submission.

Example: python predict.py --config-file output/config.yaml --input images --output predictions
MODEL.WEIGHTS output/model_final.pth
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from cellseg_d2 import CellDataError, ConfigError, load_config
from cellseg_d2.data import load_image_dicts, read_id_map, read_image
from cellseg_d2.data.layout import image_name
from cellseg_d2.export.submission import instances_to_entries, write_submission
from cellseg_d2.inference import CellPredictor, find_images
from cellseg_d2.visualization.overlay import save_prediction_overlay


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model's config")
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="DIR|FILE", help="folders of TIFFs, or TIFFs"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--id-map", metavar="JSON", help="image ids; without it they count from 1 in sorted order"
    )
    parser.add_argument(
        "--overlay", action="store_true", help="draw the cells, to OUTPUT/overlays/<name>.png"
    )
    parser.add_argument(
        "--overlay-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="cells of a lower score are submitted but not drawn (default 0.5)",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    return parser.parse_args(arguments)


def predict(
    cfg: CfgNode, dicts: list[dict[str, Any]], overlays: Path | None, threshold: float
) -> Iterator[list[dict[str, Any]]]:
    """Yield each image's entries of the submission, and draw its overlay where asked to.

    Args:
        cfg: of the model, with its weights.
        dicts: the images.
        overlays: folder of the pictures; None for none.
        threshold: score from which a cell is drawn.
    """
    predictor = CellPredictor(cfg)
    for item in tqdm(dicts, unit="image", disable=None):
        image = read_image(
            item["file_name"],
            cfg.INPUT.CELL.CHANNEL_ORDER,
            max_pixels=cfg.INPUT.CELL.MAX_PIXELS,
            intensity_range=tuple(cfg.INPUT.CELL.INTENSITY_RANGE) or None,
        )
        instances = predictor(image)["instances"].to("cpu")
        if overlays is not None:
            path = overlays / f"{image_name(item['file_name'])}.png"
            drawn = instances[instances.scores >= threshold]
            save_prediction_overlay(path, image, drawn, cfg.DATASETS.CELL.CLASS_NAMES)
        yield instances_to_entries(instances, item["image_id"])


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse(arguments)
    setup_logger(name="cellseg_d2")
    try:
        cfg = load_config(args.config_file, args.opts)
        id_map = read_id_map(args.id_map) if args.id_map else None
        dicts = load_image_dicts(find_images(args.input), id_map)
        overlays = args.output / "overlays" if args.overlay else None
        written = write_submission(
            predict(cfg, dicts, overlays, args.overlay_threshold), args.output
        )
    except (CellDataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(dicts)} images: wrote {written[0]} and {written[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(run())
