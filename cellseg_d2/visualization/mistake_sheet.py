"""The worst mistakes of a model: pieces of images, each beside its ground truth and prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import Metadata
from detectron2.structures import BoxMode
from numpy.typing import NDArray

from ..evaluation.mistakes import FATES, FOUND, TOUCHED, Cells
from ..export.rle_counts import decode_crop
from .overlay import OverlayStyle, cell_metadata, draw_ground_truth
from .sheets import SheetRow, contact_sheet

_PIECE = 96
_SCALE = 4
_MARGIN = 2
_STYLE = OverlayStyle(boxes=False, labels="none", scale=_SCALE, outline_width=3, alpha=0.15)


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        title: what it is.
        image: the image's id.
        center: its place, x and y in pixels.
    """

    title: str
    image: int
    center: tuple[float, float]


def choose_mistakes(
    gt: Cells, pred: Cells, class_names: Sequence[str], image_names: Sequence[str], each: int = 3
) -> list[Mistake]:
    """Choose the worst mistakes of each kind, of different images where they can be.

    Of cells merged, split, misdrawn and missed the largest; of cells found and given another class,
    and of predictions where no cell is, those that the model is surest of. No piece shows the place
    of another: several runs make the same mistake, and one cell's is often its neighbour's.

    Args:
        gt: the ground truth's cells.
        pred: the predicted ones.
        class_names: of the categories.
        image_names: a name for each value of ``image``; images of one name are the same.
        each: how many of a kind.
    """
    found: list[Mistake] = []

    def is_shown(name: str, center: NDArray[Any]) -> bool:
        return any(
            # At an image's border a piece has its place at its own.
            image_names[m.image] == name and np.abs(center - m.center).max() < _PIECE
            for m in found
        )

    def add(cells: Cells, which: NDArray[Any], order: NDArray[Any], text: str) -> None:
        places = np.flatnonzero(which)
        places = places[np.argsort(-order[which], kind="stable")]
        # The worst of each image first, then the second worst of each …
        turns: dict[str, int] = {}
        turn = []
        for place in places:
            image = image_names[cells.image[place]]
            turns[image] = turns.get(image, -1) + 1
            turn.append(turns[image])
        left = each
        for place in places[np.argsort(turn, kind="stable")]:
            image, center = int(cells.image[place]), cells.center[place]
            if left == 0:
                break
            if is_shown(image_names[image], center):
                continue
            left -= 1
            name = class_names[cells.category[place]]
            taken = cells.partner[place]
            title = text.format(name=name, other=class_names[taken], score=cells.score[place])
            found.append(Mistake(title, image, (float(center[0]), float(center[1]))))

    for fate, word in enumerate(FATES):
        if fate != FOUND:
            add(gt, gt.fate == fate, gt.diameter, f"{word}: {{name}}")
    wrong = (pred.fate == FOUND) & (pred.partner != pred.category)
    add(pred, wrong, pred.score, "{other} named {name}, score {score:.2f}")
    spurious = (pred.fate != FOUND) & (pred.iou < TOUCHED)
    add(pred, spurious, pred.score, "spurious: {name}, score {score:.2f}")
    return found


def draw_mistakes(
    mistakes: Iterable[Mistake],
    images: Mapping[int, tuple[str, NDArray[np.uint8]]],
    truth: Mapping[int, Sequence[dict[str, Any]]],
    predictions: Mapping[int, Sequence[dict[str, Any]]],
    class_names: Sequence[str],
) -> NDArray[np.uint8]:
    """Draw the surroundings of each mistake, 96 pixels square, as rows of a sheet.

    Args:
        mistakes: at least one.
        images: name and (H, W, 3) uint8 RGB by image id.
        truth: the ground truth's annotations by image id, with ``category_id`` and
            ``segmentation``, an RLE.
        predictions: those that are shown, likewise.
        class_names: of the categories.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    metadata = cell_metadata(class_names)
    rows = []
    for mistake in mistakes:
        name, image = images[mistake.image]
        x, y = (round(value) for value in mistake.center)
        window = _window(x, y, *image.shape[:2])
        pieces = [image[window]]
        for items in (truth[mistake.image], predictions[mistake.image]):
            pieces.append(_draw(image, items, window, metadata))
        rows.append(SheetRow(f"{mistake.title} ({name}, {x}, {y})", pieces))
    columns = ("image", "ground truth", "prediction")
    return contact_sheet(
        rows, columns, metadata.thing_classes, metadata.thing_colors, side=260, across=2
    )


def _window(x: int, y: int, height: int, width: int) -> tuple[slice, slice]:
    """Return the rows and columns of a piece around a place, moved inwards at the border."""
    side = min(_PIECE, height, width)
    left, top = min(max(x - side // 2, 0), width - side), min(max(y - side // 2, 0), height - side)
    return slice(top, top + side), slice(left, left + side)


def _draw(
    image: NDArray[np.uint8],
    items: Iterable[Mapping[str, Any]],
    window: tuple[slice, slice],
    metadata: Metadata,
) -> NDArray[np.uint8]:
    """Draw the masks of a piece; the whole image would be many times as large, enlarged."""
    # A cell that goes on beyond the piece is not to have an outline along its edge.
    rows, columns = (
        slice(max(part.start - _MARGIN, 0), min(part.stop + _MARGIN, length))
        for part, length in zip(window, image.shape, strict=False)
    )
    annotations = []
    for item in items:
        mask, box = _cut(item["segmentation"], image.shape[:2], rows, columns)
        if mask.any():
            annotations.append(
                {
                    "category_id": item["category_id"],
                    "segmentation": mask_util.encode(np.asfortranarray(mask)),
                    "bbox": box,
                    "bbox_mode": BoxMode.XYWH_ABS,
                }
            )
    record = {"annotations": annotations}
    drawn = draw_ground_truth(image[rows, columns], record, metadata, _STYLE, legend=False)
    top, left = window[0].start - rows.start, window[1].start - columns.start
    height, width = (part.stop - part.start for part in window)
    return drawn[top * _SCALE :, left * _SCALE :][: height * _SCALE, : width * _SCALE]


def _cut(
    rle: Mapping[str, Any], size: tuple[int, int], rows: slice, columns: slice
) -> tuple[NDArray[np.uint8], list[int]]:
    """Decode a mask within a window; and the whole mask's box there, by which cells are ordered."""
    crop, (x, y) = decode_crop(rle["counts"], size)
    mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
    down, right = y - rows.start, x - columns.start
    target = mask[max(down, 0) : max(down + crop.shape[0], 0)]
    target = target[:, max(right, 0) : max(right + crop.shape[1], 0)]
    source = crop[max(-down, 0) :, max(-right, 0) :]
    target[...] = source[: target.shape[0], : target.shape[1]]
    return mask, [right, down, crop.shape[1], crop.shape[0]]
