"""Predictions as the course's submission: `test-results.json` and a zip of it.

A submission is a JSON list with one object for each predicted cell::

    {"image_id": int, "bbox": [x, y, width, height], "score": float, "category_id": 1..K,
     "segmentation": {"size": [H, W], "counts": str}}

`segmentation` is a COCO run-length encoding. `bbox` is the **mask's** tight box, not the box that
the box head predicted: what is submitted is the mask, every reader that computes boxes from masks
finds the same box, and the check of a file can be exact. (The score is mask AP and never looks at
`bbox`; the box head's own boxes are evaluated from the `Instances`.)
"""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import pycocotools.mask as mask_util
from detectron2.structures import Instances

from ..checkpoint.files import replace_file

logger = logging.getLogger(__name__)

JSON_NAME = "test-results.json"
ZIP_NAME = "test-results.zip"

# The earliest time that a zip can state: the same predictions give the same bytes.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def instances_to_entries(instances: Instances, image_id: int) -> list[dict[str, Any]]:
    """Turns the predictions for one image into entries of the submission.

    Instances whose mask has no pixel are dropped, and their number is logged: no reader can match
    them, and COCO's tools disagree about their boxes.

    Args:
        instances: with `scores` (N,) in [0, 1], `pred_classes` (N,) in 0..K−1 and `pred_masks`, an
            `RLEMasks` of N masks of the image's size.
        image_id: the image's id in the submission.

    Returns:
        one dict for each instance that has a pixel, in the order of `instances`; category ids
        count from 1, boxes are [x, y, width, height] in pixels.
    """
    rles = instances.pred_masks.rles
    if not rles:
        return []
    scores = instances.scores.tolist()
    classes = instances.pred_classes.tolist()
    boxes = mask_util.toBbox(rles).tolist()
    entries = []
    for rle, score, category, box in zip(rles, scores, classes, boxes, strict=True):
        if box[2] == 0:
            continue
        counts = rle["counts"]
        entries.append(
            {
                "image_id": int(image_id),
                "bbox": box,
                "score": score,
                "category_id": category + 1,
                "segmentation": {
                    "size": [int(side) for side in rle["size"]],
                    "counts": counts if isinstance(counts, str) else counts.decode("ascii"),
                },
            }
        )
    if len(entries) < len(rles):
        logger.warning(
            "image %d: dropped %d of %d predictions, whose masks have no pixel",
            image_id,
            len(rles) - len(entries),
            len(rles),
        )
    return entries


def write_submission(
    predictions: Iterable[Iterable[dict[str, Any]]], output_dir: str | PathLike[str]
) -> tuple[Path, Path]:
    """Writes the JSON and the zip of it, holding one image's predictions at a time.

    Both files appear complete or not at all (`replace_file`).
    The same predictions always give the same bytes.

    Args:
        predictions: for each image its entries, as from `instances_to_entries`; may be a
            generator, which is read once and written as it comes.
        output_dir: folder of the two files; made where it is missing.

    Returns:
        the paths of `test-results.json` and of `test-results.zip`.

    Raises:
        ValueError: an entry holds NaN or an infinity, which JSON cannot say.
        OSError: the folder cannot be written.
    """
    folder = Path(output_dir)
    json_path, zip_path = folder / JSON_NAME, folder / ZIP_NAME
    # The zip is replaced last, and neither before both are whole.
    with replace_file(zip_path) as zip_file, replace_file(json_path) as json_file:
        count = _write_json(predictions, json_file)
        json_file.flush()
        _write_zip(Path(json_file.name), zip_file)
    logger.info("wrote %d predictions to %s", count, json_path)
    return json_path, zip_path


def remove_submission(output_dir: str | PathLike[str]) -> None:
    """Removes the files that `write_submission` writes, where they are there.

    Raises:
        OSError: a file cannot be removed.
    """
    for name in (JSON_NAME, ZIP_NAME):
        (Path(output_dir) / name).unlink(missing_ok=True)


def _write_json(predictions: Iterable[Iterable[dict[str, Any]]], file: BinaryIO) -> int:
    """Writes one entry a line; returns their number."""
    count = 0
    file.write(b"[")
    for entries in predictions:
        for entry in entries:
            file.write(b",\n" if count else b"\n")
            file.write(json.dumps(entry, allow_nan=False).encode("ascii"))
            count += 1
    file.write(b"\n]\n")
    return count


def _write_zip(json_path: Path, file: BinaryIO) -> None:
    member = zipfile.ZipInfo(JSON_NAME, date_time=_ZIP_TIME)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.create_system = 3  # Unix, whatever machine this runs on
    member.external_attr = 0o644 << 16
    member.file_size = json_path.stat().st_size  # so that zipfile knows whether to use zip64
    with (
        json_path.open("rb") as source,
        zipfile.ZipFile(file, "w") as archive,
        archive.open(member, "w") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
