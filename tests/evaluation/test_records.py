"""COCO's dicts hold what Detectron2's instances and dicts held."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from cellseg_d2.evaluation.records import coco_ground_truth, coco_predictions
from cellseg_d2.structures import RLEMasks

MASK = np.zeros((6, 8), dtype=np.uint8, order="F")
MASK[1:4, 2:7] = 1
RLE = mask_util.encode(MASK)


def instances(count: int, masks: bool) -> Instances:
    found = Instances(
        (6, 8),
        pred_boxes=Boxes(torch.tensor([[2.0, 1, 7, 4]]).repeat(count, 1)),
        scores=torch.tensor([0.75] * count),
        pred_classes=torch.tensor([2] * count, dtype=torch.int64),
    )
    if masks:
        found.pred_masks = RLEMasks([RLE] * count, (6, 8))
    return found


def test_predictions() -> None:
    (found,) = coco_predictions(instances(1, masks=True), 5)
    # pycocotools has the box that the mask's pixels fill.
    assert found == {
        "image_id": 5,
        "category_id": 2,
        "bbox": mask_util.toBbox(RLE).tolist(),
        "score": 0.75,
        "segmentation": RLE,
    }
    (found,) = coco_predictions(instances(1, masks=False), 5)
    assert "segmentation" not in found
    assert coco_predictions(instances(0, masks=True), 5) == []


def test_ground_truth() -> None:
    annotation = {"category_id": 1, "segmentation": RLE, "area": 15, "iscrowd": 0}
    boxes = [
        {"bbox": [2, 1, 7, 4], "bbox_mode": BoxMode.XYXY_ABS},
        {"bbox": [2, 1, 5, 3], "bbox_mode": BoxMode.XYWH_ABS},
    ]
    item = {
        "image_id": 4,
        "height": 6,
        "width": 8,
        "annotations": [annotation | box for box in boxes],
    }
    images, found = coco_ground_truth([item, item | {"image_id": 9, "annotations": []}])
    assert images == [{"id": i, "height": 6, "width": 8} for i in (4, 9)]
    expected = {"image_id": 4, "category_id": 1, "bbox": [2, 1, 5, 3], "area": 15}
    assert found == [expected | {"segmentation": RLE}] * 2
    assert coco_ground_truth([]) == ([], [])
