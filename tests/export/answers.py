"""Images, and answers of a model, that tests make up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import tifffile
import torch
from detectron2.structures import Boxes, Instances

from cellseg_d2.data import read_image
from cellseg_d2.structures import RLEMasks


def make_instances(
    masks: Sequence[np.ndarray],
    scores: Sequence[float],
    classes: Sequence[int],
    size: tuple[int, int],
) -> Instances:
    """The answer that has these (H, W) masks; its boxes are theirs."""
    rles = RLEMasks([mask_util.encode(np.asfortranarray(m, np.uint8)) for m in masks], size)
    return Instances(
        size,
        pred_boxes=rles.get_bounding_boxes() if len(masks) else Boxes(torch.zeros(0, 4)),
        scores=torch.tensor(scores, dtype=torch.float32),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
        pred_masks=rles,
    )


def discs(
    rng: np.random.Generator, count: int, size: tuple[int, int], num_classes: int = 4
) -> Instances:
    """Discs that overlap and leave the image, of falling scores."""
    y, x = np.mgrid[: size[0], : size[1]]
    masks = []
    for _ in range(count):
        center, radius = rng.uniform((0, 0), size), rng.uniform(1.5, 0.2 * min(size))
        masks.append((y - center[0]) ** 2 + (x - center[1]) ** 2 <= radius**2)
    scores = np.sort(rng.uniform(0.3, 1, count))[::-1]
    return make_instances(
        masks, scores.tolist(), rng.integers(0, num_classes, count).tolist(), size
    )


def save_images(folder: Path, count: int, size: tuple[int, int] = (40, 50)) -> list[dict]:
    """Write TIFFs of noise; returns their dicts, with ids that are not positions."""
    folder.mkdir(parents=True, exist_ok=True)
    dicts = []
    for index in range(count):
        path = folder / f"tile_{index:04}.tif"
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        tifffile.imwrite(path, pixels, photometric="rgb")
        ids = {"image_id": 10 + index, "height": size[0], "width": size[1]}
        dicts.append({"file_name": str(path), **ids})
    return dicts


class DiscPredictor:
    """Finds discs that depend on an image's pixels alone, in two parts, as a tiled model does."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def stream(self, path: str) -> Iterator[Instances]:
        image = read_image(path)
        self.seen.append(Path(path).stem)
        cells = discs(np.random.default_rng(int(image.sum())), 9, image.shape[:2])
        yield cells[:4]
        yield cells[4:]
