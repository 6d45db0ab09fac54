"""Label maps and RLEs against one bitmap per cell: 600 cells in 1000x1000 pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.layers import paste_masks_in_image

from cellseg_d2.data.synthetic import make_label_map
from cellseg_d2.structures import LabelMasks, encode_label_map, encode_roi_masks

from .timing import Comparison, compare

SIZE = (1000, 1000)


def run() -> Iterator[Comparison]:
    """Yield each comparison as it is made."""
    yield from parse()
    yield mask_targets()
    yield export()


def parse() -> Iterator[Comparison]:
    """Boxes, areas and RLEs of a label map against one pass over the image per id."""
    label_map = make_label_map(np.random.default_rng(0), SIZE, 600)

    def per_id(with_rles: bool) -> tuple[Any, ...]:
        ids = np.unique(label_map)[1:]
        boxes, areas, rles = [], [], []
        for i in ids:
            mask = label_map == i
            y, x = np.where(mask)
            boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
            areas.append(mask.sum())
            if with_rles:
                rles.append(mask_utils.encode(np.asfortranarray(mask)))
        return ids, np.array(boxes), np.array(areas), rles

    def one_pass(with_rles: bool) -> tuple[Any, ...]:
        found = encode_label_map(label_map)
        return found.ids, found.boxes, found.areas, found.rles() if with_rles else []

    for with_rles, goal in ((False, 300), (True, 100)):
        yield compare(
            "parse: boxes, areas" + (", RLEs" if with_rles else ""),
            "one pass per id",
            lambda with_rles=with_rles: per_id(with_rles),
            lambda with_rles=with_rles: one_pass(with_rles),
            goal,
        )


def mask_targets() -> Comparison:
    """28x28 mask targets of 128 proposals against ``BitMasks.crop_and_resize``."""
    label_map = torch.from_numpy(make_label_map(np.random.default_rng(0), SIZE, 600))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 601, (128,), generator=generator)
    masks = LabelMasks(label_map[None], torch.zeros_like(ids), ids)
    boxes = masks.get_bounding_boxes().tensor
    boxes = (boxes + 2 * torch.randn(boxes.shape, generator=generator)).clamp(0, SIZE[0])
    bitmaps = masks.to_bit_masks()
    return compare(
        "mask targets of 128 proposals",
        "BitMasks.crop_and_resize",
        lambda: bitmaps.crop_and_resize(boxes, 28),
        lambda: masks.crop_and_resize(boxes, 28),
        goal=20,
    )


def export() -> Comparison:
    """400 predicted masks to COCO RLEs against paste and encode."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(400, 2, generator=generator) * SIZE[0]
    half = 8 + 12 * torch.rand(400, 2, generator=generator)
    boxes = torch.cat([centre - half, centre + half], dim=1).clamp(0, SIZE[0])
    # Blobs as a mask head draws them: high in the middle, with a ragged edge.
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 28)] * 2, indexing="ij")
    noise = torch.randn(400, 1, 7, 7, generator=generator)
    bumps = torch.nn.functional.interpolate(noise, size=(28, 28), mode="bicubic")
    masks = torch.sigmoid(6 * (0.9 - (y**2 + x**2).sqrt()) + bumps)

    def paste_and_encode() -> list[dict[str, Any]]:
        pasted = paste_masks_in_image(masks[:, 0], boxes, SIZE)
        return [mask_utils.encode(np.asfortranarray(mask.numpy())) for mask in pasted]

    return compare(
        "export of 400 masks",
        "paste_masks_in_image + pycocotools",
        paste_and_encode,
        lambda: encode_roi_masks(masks, boxes, SIZE),
        goal=15,
    )
