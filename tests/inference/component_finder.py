"""A finder whose answers are known: connected regions, whose pixels say class and score."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from scipy import ndimage

from cellseg_d2.data.tiff_window import ArrayWindows
from cellseg_d2.inference.tile_grid import make_grid
from cellseg_d2.inference.tiling import predict_tiled
from cellseg_d2.structures import RLEMasks, encode_label_map


def find_components(images: list[np.ndarray]) -> list[Instances]:
    """Connected regions of red; class and score are those that green and blue say somewhere in it.

    The answer for a region depends on nothing else.
    """
    return [components_of(image) for image in images]


def components_of(image: np.ndarray) -> Instances:
    labels = ndimage.label(image[:, :, 0] > 0)[0].astype(np.int32)
    found = encode_label_map(labels)
    index = found.ids.tolist()
    classes = ndimage.maximum(image[:, :, 1], labels, index) if index else []
    scores = ndimage.maximum(image[:, :, 2], labels, index) if index else []
    return as_instances(labels.shape, found.rles(), np.array(scores) / 255, classes)


def as_instances(size, rles, scores, classes) -> Instances:
    scores = torch.tensor(np.asarray(scores), dtype=torch.float32)
    order = torch.argsort(-scores, stable=True)
    masks = RLEMasks(rles, size)[order]
    return Instances(
        tuple(size),
        pred_boxes=masks.get_bounding_boxes() if len(masks) else Boxes(torch.zeros(0, 4)),
        scores=scores[order],
        pred_classes=torch.tensor(np.asarray(classes), dtype=torch.int64)[order],
        pred_masks=masks,
    )


def tiled(image: np.ndarray, size: int, overlap: int, find=find_components, **options) -> Instances:
    parts = list(predict_tiled(find, ArrayWindows(image), size, overlap, **options))
    assert len(parts) == make_grid(image.shape[:2], size, overlap).num_rows
    for part in parts:
        assert part.image_size == image.shape[:2]
        assert (part.scores[1:] <= part.scores[:-1]).all()
    return Instances.cat(parts)


def contents(instances: Instances) -> list[tuple]:
    return sorted(
        (rle["counts"], *map(float, box), round(float(score), 6), int(category))
        for rle, box, score, category in zip(
            instances.pred_masks.rles,
            instances.pred_boxes.tensor,
            instances.scores,
            instances.pred_classes,
            strict=True,
        )
    )


def paint(image: np.ndarray, mask: np.ndarray, category: int = 0, score: int = 255) -> None:
    image[mask] = (255, category, score)


def disc(shape: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def cells_image(
    seed: int,
    shape: tuple[int, int],
    radii: tuple[float, float],
    count: int,
    hollow: float = 0,
    gap: float = 2,
) -> np.ndarray:
    """Discs, and beyond a radius rings, that do not touch, each of one class and score."""
    rng = np.random.default_rng(seed)
    image = np.zeros((*shape, 3), np.uint8)
    for _ in range(count):
        y, x = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        radius = rng.uniform(*radii)
        if image[disc(shape, y, x, radius + gap)].any():
            continue
        mask = disc(shape, y, x, radius)
        if radius > hollow and rng.random() < 0.3:
            mask &= ~disc(shape, y, x, radius / 2)
        paint(image, mask, rng.integers(4), rng.integers(1, 256))
    return image
