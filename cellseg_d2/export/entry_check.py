"""The check of one prediction of a submission."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .image_index import IndexedImage
from .json_stream import LongInteger
from .rle_counts import decode_counts, foreground_spans, tight_box

_FIELDS = ("image_id", "bbox", "score", "category_id", "segmentation")
_MASK_FIELDS = ("size", "counts")
# Run lengths are counted in 32 bits; slides that are predicted in tiles come near.
_MAX_PIXELS = 2**32 - 1

# The box that a box head predicts holds the mask that was pasted into it, but for the rounding of
# pixels, and may be looser than the mask's own.
_OUTSIDE_TOLERANCE = 1.0
_LOOSE_PIXELS = 3.0
_LOOSE_SHARE = 0.5

Box = tuple[float, float, float, float]
Finding = tuple[str, str]


class EntryChecker:
    """Checks one prediction after the other and keeps the figures of all.

    Args:
        images: {image id: image} of the images that may occur; None where they are not known.
        num_classes: K; category ids are 1 to K.

    Attributes:
        image_ids: every image id seen that is an integer.
        category_ids: every category id seen that is an integer.
        scores: lowest and highest finite score seen; None before the first.
        duplicates: how many predictions had the image and mask of an earlier one.
    """

    def __init__(self, images: Mapping[int, IndexedImage] | None, num_classes: int) -> None:
        self.image_ids: set[int] = set()
        self.category_ids: set[int] = set()
        self.scores: tuple[float, float] | None = None
        self.duplicates = 0
        self._images = images
        self._num_classes = num_classes
        self._masks_seen: set[int] = set()

    def check(self, entry: Any) -> tuple[int | None, list[Finding]]:
        """Checks one prediction.

        Args:
            entry: the decoded JSON value, of whatever type.

        Returns:
            its image id (None where that is not an integer), and (field, message) for every fault.
        """
        found: list[Finding] = []
        if not isinstance(entry, dict):
            return None, [("", f"{shown(entry)} is not an object")]
        _check_fields(entry, _FIELDS, "", found)
        image_id = None
        if "image_id" in entry:
            image_id = self._check_image_id(entry["image_id"], found)
        if "category_id" in entry:
            self._check_category(entry["category_id"], found)
        if "score" in entry:
            self._check_score(entry["score"], found)
        box = _check_box(entry["bbox"], found) if "bbox" in entry else None
        tight = None
        if "segmentation" in entry:
            tight = self._check_mask(entry["segmentation"], image_id, found)
        if box is not None and tight is not None:
            _check_box_against_mask(box, tight, found)
        return image_id, found

    def _check_image_id(self, value: Any, found: list[Finding]) -> int | None:
        if type(value) is not int:
            found.append(("image_id", f"{shown(value)} is not an integer"))
            return None
        self.image_ids.add(value)
        if self._images is not None and value not in self._images:
            found.append(("image_id", f"{value} is not the id of an image"))
        elif value < 0:
            found.append(("image_id", f"{value} is negative"))
        return value

    def _check_category(self, value: Any, found: list[Finding]) -> None:
        if type(value) is not int:
            found.append(("category_id", f"{shown(value)} is not an integer"))
            return
        self.category_ids.add(value)
        if not 1 <= value <= self._num_classes:
            found.append(("category_id", f"{value} is not within 1 to {self._num_classes}"))

    def _check_score(self, value: Any, found: list[Finding]) -> None:
        if not _is_finite_number(value):
            found.append(("score", f"{shown(value)} is not a finite number"))
            return
        low, high = self.scores or (value, value)
        self.scores = min(low, value), max(high, value)
        if not 0 <= value <= 1:
            found.append(("score", f"{value} is not within 0 to 1"))

    def _check_mask(self, mask: Any, image_id: int | None, found: list[Finding]) -> Box | None:
        """Checks a run-length encoding; returns the mask's tight box (x0, y0, x1, y1)."""
        if not isinstance(mask, dict):
            hint = "; polygons are not accepted" if isinstance(mask, list) else ""
            found.append(("segmentation", f"{shown(mask)} is not an object{hint}"))
            return None
        _check_fields(mask, _MASK_FIELDS, "segmentation.", found)
        size = self._check_size(mask["size"], image_id, found) if "size" in mask else None
        if "counts" not in mask:
            return None
        counts = mask["counts"]
        if not isinstance(counts, str):
            hint = "; compress the run lengths" if isinstance(counts, list) else ""
            found.append(("segmentation.counts", f"{shown(counts)} is not a string{hint}"))
            return None
        if size is None:
            return None
        try:
            starts, ends = foreground_spans(decode_counts(counts, size))
        except ValueError as error:
            found.append(("segmentation.counts", str(error)))
            return None
        if starts.size == 0:
            found.append(("segmentation.counts", "the mask has no pixel"))
            return None
        if image_id is not None:
            # The hash alone, in place of the text: two masks share one by chance in 10¹⁹ cases.
            key = hash((image_id, size, counts))
            if key in self._masks_seen:
                self.duplicates += 1
            self._masks_seen.add(key)
        return tight_box(starts, ends, size[0])

    def _check_size(
        self, size: Any, image_id: int | None, found: list[Finding]
    ) -> tuple[int, int] | None:
        field = "segmentation.size"
        if not (
            isinstance(size, list)
            and len(size) == 2
            and all(type(side) is int and side > 0 for side in size)
        ):
            found.append((field, f"{shown(size)} is not [height, width] of positive integers"))
            return None
        height, width = size
        if height * width > _MAX_PIXELS:
            found.append((field, f"{size} is more than {_MAX_PIXELS} pixels"))
            return None
        image = self._images.get(image_id) if self._images and image_id is not None else None
        if image is not None and image.size is not None and image.size != (height, width):
            hint = "; height and width are swapped" if image.size == (width, height) else ""
            found.append((field, f"{size} is not the image's {list(image.size)}{hint}"))
        return height, width


def shown(value: Any) -> str:
    """A JSON value for a message: short, ASCII, and safe for values of any size."""
    if isinstance(value, str):
        return ascii(value if len(value) <= 40 else value[:40] + "...")
    if isinstance(value, LongInteger):
        return f"an integer of {value.digits} digits"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        if len(value) <= 4 and all(isinstance(item, int | float) for item in value):
            return str(value)
        return f"a list of {len(value)}"
    return str(value)


def _check_fields(
    value: dict[str, Any], expected: tuple[str, ...], prefix: str, found: list[Finding]
) -> None:
    if len(value) == len(expected) and all(name in value for name in expected):
        return
    found += [(prefix + name, "is missing") for name in expected if name not in value]
    found += [
        (prefix + shown(name), "is not a field of a prediction")
        for name in value
        if name not in expected
    ]


def _is_finite_number(value: Any) -> bool:
    # `type`, since a bool is an int to isinstance.
    return type(value) in (int, float) and math.isfinite(value)


def _check_box(box: Any, found: list[Finding]) -> Box | None:
    """Returns the box as (x, y, width, height)."""
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite_number, box))):
        found.append(("bbox", f"{shown(box)} is not a list of four finite numbers"))
        return None
    if box[2] <= 0 or box[3] <= 0:
        found.append(("bbox", f"{box} has no positive width and height"))
        return None
    return box[0], box[1], box[2], box[3]


def _check_box_against_mask(box: Box, tight: Box, found: list[Finding]) -> None:
    x, y, width, height = box
    misfit = _misfit((x, y, x + width, y + height), tight)
    if misfit is None:
        return
    x0, y0, x1, y1 = tight
    stated = f"{list(box)} {misfit} [{x0}, {y0}, {x1 - x0}, {y1 - y0}]"
    if _misfit(box, tight) is None:
        stated += "; it holds x0, y0, x1, y1 where x, y, width, height are expected"
    found.append(("bbox", stated))


def _misfit(corners: Box, tight: Box) -> str | None:
    """What is wrong with a box (x0, y0, x1, y1) for a mask, as the words before the mask's box."""
    gaps = [inner - outer for inner, outer in zip(tight[:2], corners[:2], strict=True)]
    gaps += [outer - inner for inner, outer in zip(tight[2:], corners[2:], strict=True)]
    if min(gaps) < -_OUTSIDE_TOLERANCE:
        return "does not hold the mask, whose box is"
    area = (corners[2] - corners[0]) * (corners[3] - corners[1])
    share = (tight[2] - tight[0]) * (tight[3] - tight[1]) / area if area > 0 else 0.0
    if max(gaps) > _LOOSE_PIXELS and share < _LOOSE_SHARE:
        return "is far larger than the mask, whose box is"
    return None
