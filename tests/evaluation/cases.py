"""Random dense images with masks as RLEs, and answers to them of middling quality."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_utils

NAMES = ["a", "b", "c"]


def disc(size: int, x: float, y: float, radius: float) -> dict:
    yy, xx = np.mgrid[:size, :size]
    mask = (xx - x) ** 2 + (yy - y) ** 2 <= radius**2
    return mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))


def random_case(seed: int, cells: int = 40, images: int = 3):
    """Ground-truth discs, predictions shifted and resized, some spurious, some missed."""
    rng = np.random.default_rng(seed)
    size = 256
    records = [{"id": i + 7, "height": size, "width": size} for i in range(images)]
    annotations, predictions = [], []
    for record in records:
        for _ in range(cells):
            x, y = rng.uniform(10, size - 10, 2)
            radius = rng.choice([6, 20, 60], p=[0.7, 0.2, 0.1])
            rle = disc(size, x, y, radius)
            category = int(rng.integers(2))  # class c has no ground truth
            common = {"image_id": record["id"], "category_id": category}
            annotations.append(
                common
                | {
                    "segmentation": rle,
                    "area": int(mask_utils.area(rle)),
                    "bbox": mask_utils.toBbox(rle).tolist(),
                }
            )
            if rng.uniform() < 0.8:
                shift = rng.normal(0, radius / 5, 2)
                guess = disc(size, x + shift[0], y + shift[1], radius * rng.uniform(0.8, 1.2))
                wrong = int(rng.integers(3)) if rng.uniform() < 0.2 else category
                predictions.append(
                    common
                    | {
                        "category_id": wrong,
                        "segmentation": guess,
                        "bbox": mask_utils.toBbox(guess).tolist(),
                        "score": float(np.round(rng.uniform(), 2)),  # ties happen
                    }
                )
    return records, annotations, predictions
