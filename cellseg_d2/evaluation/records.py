"""What COCO's evaluation reads, from Detectron2's dicts and instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.structures import BoxMode, Instances


def coco_predictions(instances: Instances, image_id: int) -> list[dict[str, Any]]:
    """Turn one image's answer into COCO's dicts; masks stay the RLEs that they are.

    Args:
        instances: with ``pred_boxes``, ``scores``, ``pred_classes`` and, where the model has a mask
            head, ``pred_masks`` (``RLEMasks``).
        image_id: of the image.

    Returns:
        Dicts of ``image_id``, ``category_id`` (from 0), ``bbox`` (x, y, w, h), ``score`` and
        ``segmentation``, in the order of the instances.
    """
    boxes = instances.pred_boxes.tensor.cpu().numpy()
    boxes = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    scores = instances.scores.tolist()
    classes = instances.pred_classes.tolist()
    predictions = [
        {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
        for category, box, score in zip(classes, boxes, scores, strict=True)
    ]
    if instances.has("pred_masks"):
        for prediction, rle in zip(predictions, instances.pred_masks.rles, strict=True):
            prediction["segmentation"] = rle
    return predictions


def coco_ground_truth(
    dicts: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Turn data-set dicts into COCO's images and annotations.

    Args:
        dicts: Detectron2's standard ones, with ``annotations`` that have an ``area``.

    Returns:
        Images (``id``, ``height``, ``width``) and annotations (``image_id``, ``category_id`` from
        0, ``bbox``, ``area``, ``segmentation``).
    """
    images = [{"id": d["image_id"], "height": d["height"], "width": d["width"]} for d in dicts]
    annotations = [
        {
            "image_id": d["image_id"],
            "category_id": a["category_id"],
            "bbox": BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS),
            "area": a["area"],
            "segmentation": a["segmentation"],
        }
        for d in dicts
        for a in d["annotations"]
    ]
    return images, annotations
