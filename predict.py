#!/usr/bin/env python
r"""Find the cells of TIFF images and write the submission.

python predict.py --config-file run/config.yaml --input images --output predictions \
    MODEL.WEIGHTS run/model_final.pth

OUTPUT/test-results.json and .zip are written when all images are done; a file there is replaced.
An OUTPUT with files of a former run that would not be replaced, of other images, is refused.
A run that was interrupted goes on with the images that are missing when its command is repeated;
remove OUTPUT/parts to begin anew. Where an image cannot be read, the others are predicted, it is
named at the end, and no submission is written.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict

# Read when PyTorch is loaded: how long a thread that waits for others spins before it sleeps. GNU
# OpenMP's default is so long that two trainings beside each other all but stop.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from cellseg_d2 import CellDataError, ConfigError, load_config
from cellseg_d2.data import load_image_dicts, read_id_map
from cellseg_d2.engine.launch import WorkerError, launch_job
from cellseg_d2.export.folder import predict_folder
from cellseg_d2.export.image_outputs import ImageOutputs, OutputOptions
from cellseg_d2.export.parts import Parts, run_fingerprint
from cellseg_d2.inference import CellPredictor, find_images

_FILE_SUFFIXES = (".TIF", ".TIFF", ".PTH", ".PKL")
_CONFIG_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)+")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="the model's config")
    add("--input", required=True, nargs="+", metavar="DIR|FILE", help="folders of TIFFs, or TIFFs")
    add("--output", required=True, metavar="DIR", help="the folder that all is written to")
    add("--id-map", metavar="JSON", help="image ids; without it they count from 1, sorted by name")
    flag = {"action": "store_true"}
    add("--labels", **flag, help="label TIFFs, OUTPUT/labels/<name>/classK.tif, with image.tif")
    add("--geojson", **flag, help="outlines for QuPath, OUTPUT/geojson/<name>.geojson")
    add("--csv", **flag, help="measurements of each cell, OUTPUT/measurements/<name>.csv")
    add("--overlay", **flag, help="the cells drawn, OUTPUT/overlays/<name>.png")
    add(
        "--score-threshold",
        "--overlay-threshold",
        type=float,
        metavar="SCORE",
        help="cells of a lower score are in the submission but in none of these four (default: "
        "TEST.PANOPTIC.SCORE_THRESHOLD, that of the label maps that PQ is measured on)",
    )
    add("--tta", **flag, help="test-time augmentation: TEST.TTA.ENABLED True")
    add("--ensemble", nargs="+", default=[], metavar="W", help="weights of several models, fused")
    add("--num-gpus", type=int, default=1, metavar="N", help="processes, on as many GPUs (1)")
    add("--num-machines", type=int, default=1, metavar="M", help="that share the images (1)")
    add("--machine-rank", type=int, default=0, metavar="R", help="of this machine, from 0 (0)")
    add("--dist-url", default="auto", metavar="URL", help="tcp://host:port of machine 0")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(arguments)
    args.input, after_input = _split_at_key(args.input)
    args.ensemble, after_ensemble = _split_at_key(args.ensemble)
    args.opts = [*after_input, *after_ensemble, *args.opts]
    if not args.input:
        parser.error("--input names no image")
    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        parser.error(f"--score-threshold is {args.score_threshold:g}; scores lie in [0, 1]")
    if args.tta:
        args.opts += ["TEST.TTA.ENABLED", "True"]
    return args


def _split_at_key(values: list[str]) -> tuple[list[str], list[str]]:
    """Part what a list option took too much: the first config key, and all after it."""
    for index, value in enumerate(values):
        # A camera's IMG_1.TIF is spelled like a key, and may be missing.
        is_key = _CONFIG_KEY.fullmatch(value) and not value.endswith(_FILE_SUFFIXES)
        if is_key and not os.path.exists(value):
            return values[:index], values[index:]
    return values, []


def main(args: argparse.Namespace) -> None:
    """Run one process of the job."""
    setup_logger(distributed_rank=comm.get_rank(), name="cellseg_d2")
    cfg = load_config(args.config_file, args.opts)
    id_map = read_id_map(args.id_map) if args.id_map else None
    dicts = load_image_dicts(find_images(args.input), id_map)
    threshold = args.score_threshold
    if threshold is None:
        threshold = cfg.TEST.PANOPTIC.SCORE_THRESHOLD
    options = OutputOptions(args.labels, args.geojson, args.csv, args.overlay, threshold)
    weights = args.ensemble or [cfg.MODEL.WEIGHTS]
    parts = Parts(args.output, run_fingerprint(cfg, weights, **asdict(options)))
    written = predict_folder(
        dicts,
        lambda: CellPredictor(cfg, args.ensemble),
        ImageOutputs(args.output, cfg, options, parts),
        parts,
        args.output,
    )
    if comm.is_main_process():
        print(f"{len(dicts)} images: wrote {written[0]} and {written[1]}")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse(arguments)
    try:
        launch_job(main, args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CellDataError, OSError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
