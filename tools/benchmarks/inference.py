"""Prediction whole, in tiles and in several views: the small model, drawn at random, on one image.

Its weights find boxes all over the image, as many as the cap lets through, which is the most that
the steps behind the network can have to do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from cellseg_d2 import load_config
from cellseg_d2.data.synthetic import make_label_map
from cellseg_d2.inference import CellPredictor
from cellseg_d2.inference.dihedral import SYMMETRIES
from cellseg_d2.inference.fusion import merge_answers
from cellseg_d2.structures import RLEMasks, encode_label_map

from .timing import Comparison, Figure, compare, median_seconds, peak_memory

CONFIG = Path(__file__).parents[2] / "configs" / "mask_rcnn_R_18_FPN_small.yaml"
SIZE = (1000, 1000)
# A quarter of the cap on the whole image, which is four times as large.
TILES = ["TEST.TILE.SIZE", "512", "TEST.TILE.OVERLAP", "128", "TEST.DETECTIONS_PER_IMAGE", "250"]
VIEWS = ["TEST.TTA.ENABLED", "True"]
ALL_VIEWS = [*VIEWS, "TEST.TTA.TRANSFORMS", str(list(SYMMETRIES))]


def run() -> Iterator[Comparison | Figure]:
    """Yield each measurement as it is made."""
    yield undo()
    yield from merging()
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "small.pth")
        torch.manual_seed(0)
        torch.save({"model": build_model(load_config(CONFIG)).state_dict()}, weights)
        yield from rates(weights)
        yield from memory(weights)


def undo() -> Comparison:
    """Masks of 600 cells turned back by 90° against bitmaps."""
    turned = seen_cells(600)
    symmetry = SYMMETRIES["rot90"]

    def bitmaps() -> list[dict[str, Any]]:
        rles = []
        for rle in turned.pred_masks.rles:
            mask = np.rot90(mask_utils.decode(rle), -1)
            rles.append(mask_utils.encode(np.asfortranarray(mask)))
        return rles

    return compare(
        "undo a rotation of 600 masks",
        "decode, np.rot90, encode",
        bitmaps,
        lambda: symmetry.undo(turned).pred_masks.rles,
        goal=10,
    )


def merging() -> Iterator[Figure]:
    """Eight answers of 1,000 cells each become one."""
    answers = [seen_cells(1000, seed) for seed in range(8)]
    for method in ("fusion", "nms"):
        merged, seconds = median_seconds(
            lambda method=method: merge_answers(
                answers, method=method, threshold=0.5, max_detections=2000
            ),
            3,
        )
        yield Figure(f"merge 8 x 1,000 cells to {len(merged):,}, {method}", seconds, "s")


def rates(weights: str) -> Iterator[Figure]:
    """Images of 1000x1000 pixels per second."""
    image = picture(SIZE)
    for name, options in (
        ("whole", []),
        ("tiles of 512", TILES),
        ("4 views", VIEWS),
        ("8 views", ALL_VIEWS),
    ):
        predict = predictor(weights, *options)
        answer, seconds = median_seconds(lambda predict=predict: predict(image), 2)
        cells = len(answer["instances"])
        yield Figure(f"predict, {name}, {cells:,} found", 1 / seconds, "images/s")


def memory(weights: str) -> Iterator[Figure]:
    """Peak memory over what is resident, by size of the image and by number of cells."""
    for name, options, side in (
        ("whole, cap 1000", [], 500),
        ("whole, cap 1000", [], 1000),
        ("whole, cap 1000", [], 2000),
        ("whole, cap 100", ["TEST.DETECTIONS_PER_IMAGE", "100"], 1000),
        ("tiles of 512, cap 250", TILES, 1000),
        ("tiles of 512, cap 250", TILES, 2000),
    ):
        predict = predictor(weights, *options)
        image = picture((side, side))
        peak = peak_memory(lambda predict=predict, image=image: predict(image))
        yield Figure(f"peak, {side}x{side}, {name}", peak, "MiB")


def predictor(weights: str, *options: str) -> CellPredictor:
    """Return the small model with settings; it gives out all boxes up to the cap."""
    common = ["MODEL.WEIGHTS", weights, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    return CellPredictor(load_config(CONFIG, [*common, "MODEL.DEVICE", "cpu", *options]))


def picture(size: tuple[int, int]) -> np.ndarray:
    """Return noise, (H, W, 3) uint8: the time does not depend on what is shown."""
    return np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)


def seen_cells(count: int, seed: int = 0) -> Instances:
    """Return an answer of synthetic cells, moved by up to a pixel and scored by the seed."""
    generator = np.random.default_rng(seed)
    label_map = make_label_map(np.random.default_rng(0), SIZE, count)
    found = encode_label_map(np.roll(label_map, generator.integers(-1, 2, 2), (0, 1)))
    masks = RLEMasks(found.rles(), SIZE)
    return Instances(
        SIZE,
        pred_boxes=masks.get_bounding_boxes(),
        scores=torch.from_numpy(generator.uniform(0.05, 1, len(masks)).astype(np.float32)),
        pred_classes=torch.from_numpy(found.ids % 4).long(),
        pred_masks=masks,
    )
