"""Predictions of a submission, back as Detectron2's `Instances`."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from ..errors import CellDataError
from ..structures.rle import RLEMasks
from .entry_check import EntryChecker
from .image_index import IndexedImage
from .json_stream import JsonListError, iter_json_list
from .submission_file import SubmissionFileError, open_submission


def read_submission(
    path: str | PathLike[str],
    images: Mapping[int, IndexedImage],
    num_classes: int,
    score_threshold: float = 0.0,
) -> tuple[dict[int, Instances], int]:
    """Reads the predictions of each image.

    Args:
        path: a submission, `.json` or `.zip`.
        images: {image id: image} of the images that may occur, their sizes known.
        num_classes: K; category ids are 1 to K.
        score_threshold: predictions with a lower score are left out.

    Returns:
        {image id: `Instances` with `pred_boxes`, `scores`, `pred_classes` in 0..K−1 and
        `pred_masks` as `RLEMasks`}, empty ones included, and the number of predictions that were
        left out because the check of submissions finds a fault in them.

    Raises:
        CellDataError: the file as a whole is no submission.
    """
    checker = EntryChecker(images, num_classes)
    kept: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    faulty = 0
    try:
        with open_submission(path) as opened:
            for element in iter_json_list(opened.stream):
                image_id, found = checker.check(element.value)
                if found or image_id is None:
                    faulty += 1
                elif element.value["score"] >= score_threshold:
                    kept[image_id].append(element.value)
    except (JsonListError, SubmissionFileError, UnicodeDecodeError) as error:
        raise CellDataError(
            path,
            str(error),
            "a JSON list of predictions, or a zip of it",
            "list its faults with tools/validate_submission.py",
        ) from error
    return {
        image_id: _instances(entries, image.size)
        for image_id, image in images.items()
        if image.size is not None
        for entries in [kept[image_id]]
    }, faulty


def _instances(entries: list[dict[str, Any]], size: tuple[int, int]) -> Instances:
    boxes = np.array([entry["bbox"] for entry in entries], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    rles = [
        {
            "size": entry["segmentation"]["size"],
            "counts": entry["segmentation"]["counts"].encode("ascii"),
        }
        for entry in entries
    ]
    return Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(boxes)),
        scores=torch.tensor([float(entry["score"]) for entry in entries]),
        pred_classes=torch.tensor([entry["category_id"] - 1 for entry in entries]).long(),
        pred_masks=RLEMasks(rles, size),
    )
