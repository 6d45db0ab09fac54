"""The worst mistakes of a model: pieces of images, each beside its ground truth and prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from numpy.typing import NDArray

from ..evaluation.mistakes import FATES, FOUND, TOUCHED, Cells
from .overlay import OverlayStyle, cell_metadata, draw_ground_truth
from .sheets import SheetRow, contact_sheet

_PIECE = 96
_SCALE = 4
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
            image_names[m.image] == name and np.abs(center - m.center).max() < _PIECE / 2
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
        truth: the ground truth's annotations by image id.
        predictions: those that are shown, by image id, with ``bbox`` as x, y, width and height.
        class_names: of the categories.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    metadata = cell_metadata(class_names)
    drawn: dict[int, tuple[NDArray[np.uint8], ...]] = {}
    rows = []
    for mistake in mistakes:
        name, image = images[mistake.image]
        if mistake.image not in drawn:
            answers = [{**p, "bbox_mode": BoxMode.XYWH_ABS} for p in predictions[mistake.image]]
            drawn[mistake.image] = tuple(
                draw_ground_truth(image, {"annotations": items}, metadata, _STYLE, legend=False)
                for items in (truth[mistake.image], answers)
            )
        x, y = (round(value) for value in mistake.center)
        pieces = [_piece(image, x, y, 1)]
        pieces += [_piece(picture, x, y, _SCALE) for picture in drawn[mistake.image]]
        rows.append(SheetRow(f"{mistake.title} ({name}, {x}, {y})", pieces))
    columns = ("image", "ground truth", "prediction")
    return contact_sheet(
        rows, columns, metadata.thing_classes, metadata.thing_colors, side=260, across=2
    )


def _piece(picture: NDArray[np.uint8], x: int, y: int, scale: int) -> NDArray[np.uint8]:
    """Cut a piece around a place, moved inwards at the border."""
    height, width = picture.shape[:2]
    side = min(_PIECE * scale, height, width)
    left = min(max(x * scale - side // 2, 0), width - side)
    top = min(max(y * scale - side // 2, 0), height - side)
    return picture[top : top + side, left : left + side]
