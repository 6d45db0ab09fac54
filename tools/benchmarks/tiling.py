"""Tiled prediction: memory and time against the side of a slide, and the cost of the tiles.

Slides up to 10,000 pixels wide go through a small network, up to 20,000 through a threshold, which
takes ten minutes in all and 1.2 GB of temporary files.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from cellseg_d2 import add_cellseg_config
from cellseg_d2.data.synthetic import make_image, write_slide
from cellseg_d2.data.tiff_window import ArrayWindows, open_windows
from cellseg_d2.inference.finder import Finder
from cellseg_d2.inference.tile_grid import make_grid
from cellseg_d2.inference.tiling import predict_tiled
from cellseg_d2.structures import RLEMasks, encode_label_map

from .timing import Comparison, Figure, peak_memory

TILE_SIZE, OVERLAP = 1024, 128
MODEL_SIDES = (2_500, 5_000, 10_000)
STUB_SIDES = (5_000, 10_000, 20_000)
SMALL_MODEL = "configs/mask_rcnn_R_18_FPN_small.yaml"
_REPOSITORY = Path(__file__).resolve().parents[2]
_GOAL_SIDE = 2048
_CELLS_PER_PIXEL = 600e-6


def run() -> Iterator[Comparison | Figure]:
    """Yield each result as it is measured."""
    yield from overhead()
    for finder, sides in (("small model", MODEL_SIDES), ("threshold", STUB_SIDES)):
        for side in sides:
            yield from slide(finder, side)


def overhead() -> Iterator[Comparison | Figure]:
    """The same image whole and in tiles; processor time, to which other programs do not add."""
    image, _ = make_image(np.random.default_rng(0), (_GOAL_SIDE, _GOAL_SIDE), 2_500)
    windows = ArrayWindows(image)
    grid = make_grid((_GOAL_SIDE, _GOAL_SIDE), TILE_SIZE, OVERLAP)
    tile_side = int(grid.rows.ends[0])
    # To find as many cells at once takes as many proposals.
    whole = model_finder(_GOAL_SIDE, proposals=(_GOAL_SIDE / TILE_SIZE) ** 2)
    tile = model_finder(tile_side)

    def tiled() -> list[Instances]:
        return list(predict_tiled(tile, windows, TILE_SIZE, OVERLAP))

    our_memory = peak_memory(tiled)
    whole_memory = peak_memory(lambda: whole([image]))
    whole_seconds, tiled_seconds = _processor_seconds(lambda: whole([image])), _processor_seconds(
        tiled
    )
    yield Comparison(
        f"{_GOAL_SIDE}x{_GOAL_SIDE} in {grid.num_rows}x{grid.num_columns} tiles of {tile_side}",
        "the whole image at once",
        whole_seconds,
        tiled_seconds,
        goal=1.35,
        at_most=True,
        reference_memory=whole_memory,
        our_memory=our_memory,
    )
    covered = sum(grid.rows.ends - grid.rows.starts) * sum(grid.columns.ends - grid.columns.starts)
    yield Figure(
        f"{_GOAL_SIDE}x{_GOAL_SIDE}: pixels of all tiles", float(covered) / _GOAL_SIDE**2, "x"
    )
    yield Figure(f"{_GOAL_SIDE}x{_GOAL_SIDE}, whole", 1 / whole_seconds, "images/s")
    yield Figure(f"{_GOAL_SIDE}x{_GOAL_SIDE}, tiled", 1 / tiled_seconds, "images/s")


def _processor_seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def slide(finder: str, side: int) -> Iterator[Figure]:
    """Memory and time of a slide in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_slide(path, (side, side))
        code = f"from benchmarks import tiling; tiling.measure({finder!r}, {str(path)!r})"
        found = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=_REPOSITORY / "tools",
            stdout=subprocess.PIPE,
            check=True,
        )
    result = json.loads(found.stdout.splitlines()[-1])
    name = f"slide of {side}x{side}, {finder}"
    yield Figure(f"{name}: peak resident memory", result["mebibytes"], "MiB")
    yield Figure(f"{name}: of which before it", result["before"], "MiB")
    yield Figure(f"{name}: time", 1e6 * result["seconds"] / side**2, "s/megapixel")
    yield Figure(f"{name}: cells", result["cells"], "")


def measure(finder: str, path: str) -> None:
    """Predict a slide and print what it took, as JSON."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    find = model_finder(TILE_SIZE) if finder == "small model" else find_dark_regions
    before = _peak_mebibytes()
    begin = time.process_time()
    with open_windows(path) as windows:
        cells = sum(map(len, predict_tiled(find, windows, TILE_SIZE, OVERLAP)))
    seconds = time.process_time() - begin
    values = {"before": before, "mebibytes": _peak_mebibytes(), "seconds": seconds, "cells": cells}
    print(json.dumps(values))


def _peak_mebibytes() -> float:
    """The most memory that the process has had; without /proc, the parent's counts too."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def model_finder(side: int, proposals: float = 1) -> Finder:
    """The small model with random weights, which finds as many cells as it is allowed to.

    Args:
        side: of its images in pixels; 600 cells are found in a million of them.
        proposals: that it looks at, over those that its config says.
    """
    cfg = get_cfg()
    add_cellseg_config(cfg)
    cfg.merge_from_file(str(_REPOSITORY / SMALL_MODEL))
    cfg.MODEL.DEVICE = "cpu"
    cfg.TEST.DETECTIONS_PER_IMAGE = round(_CELLS_PER_PIXEL * side**2)
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = round(proposals * cfg.MODEL.RPN.PRE_NMS_TOPK_TEST)
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = round(proposals * cfg.MODEL.RPN.POST_NMS_TOPK_TEST)
    torch.manual_seed(0)
    model = build_model(cfg).eval()

    def find(images: list[np.ndarray]) -> list[Instances]:
        answers = []
        for image in images:
            tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
            with torch.no_grad():
                answers.append(model([{"image": tensor}])[0]["instances"])
        return answers

    return find


def find_dark_regions(images: list[np.ndarray]) -> list[Instances]:
    """Connected dark regions: nuclei, more or less, at hardly any cost."""
    return [_dark_regions(image) for image in images]


def _dark_regions(image: np.ndarray) -> Instances:
    dark = (cv2.blur(image[:, :, 0], (5, 5)) < 120).astype(np.uint8)
    found = encode_label_map(cv2.connectedComponents(dark, connectivity=4)[1])
    size = image.shape[:2]
    return Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(found.boxes.astype(np.float32))),
        scores=torch.ones(len(found)),
        pred_classes=torch.zeros(len(found), dtype=torch.int64),
        pred_masks=RLEMasks(found.rles(), size),
    )
