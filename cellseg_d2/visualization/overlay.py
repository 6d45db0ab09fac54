"""Pictures of an image's cells: ground truth or predictions, with a legend beneath."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray

from ..structures import RLEMasks
from .colors import class_names
from .legend import add_legend
from .png import save_png
from .visualizer import CellVisualizer, OverlayStyle, cell_metadata, metadata_colors

__all__ = [
    "CellVisualizer",
    "OverlayStyle",
    "cell_metadata",
    "draw_ground_truth",
    "draw_predictions",
    "open_prediction_overlay",
    "save_prediction_overlay",
]


def draw_ground_truth(
    image: NDArray[np.uint8],
    record: dict[str, Any],
    metadata: Metadata | None = None,
    style: OverlayStyle | None = None,
    legend: bool = True,
) -> NDArray[np.uint8]:
    """Draws the annotations of one image.

    Args:
        image: (H, W, 3) uint8 RGB.
        record: a Detectron2 dict with annotations.
        metadata: names and colours of the classes; None for four classes of default names.
        style: what is drawn, and how large.
        legend: whether a band beneath names the classes and their counts.

    Returns:
        the picture, uint8 RGB, `style.scale` times the image's size and the band.
    """
    visualizer = CellVisualizer(image, metadata, style)
    picture = visualizer.draw_dataset_dict(record).get_image()
    classes = [annotation["category_id"] for annotation in record.get("annotations", [])]
    return _with_legend(picture, visualizer.metadata, classes) if legend else picture


def draw_predictions(
    image: NDArray[np.uint8],
    instances: Instances,
    metadata: Metadata | None = None,
    style: OverlayStyle | None = None,
    legend: bool = True,
) -> NDArray[np.uint8]:
    """Draws the predictions for one image; as `draw_ground_truth`, with scores in the labels.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: as for `CellVisualizer.draw_instance_predictions`.
        metadata: names and colours of the classes; None for four classes of default names.
        style: what is drawn, and how large.
        legend: whether a band beneath names the classes and their counts.

    Returns:
        the picture, uint8 RGB, `style.scale` times the image's size and the band.
    """
    instances = instances.to("cpu")
    visualizer = CellVisualizer(image, metadata, style)
    picture = visualizer.draw_instance_predictions(instances).get_image()
    classes = instances.pred_classes.tolist()
    return _with_legend(picture, visualizer.metadata, classes) if legend else picture


def save_prediction_overlay(
    path: str | PathLike[str],
    image: NDArray[np.uint8],
    instances: Instances,
    names: Sequence[str],
    style: OverlayStyle | None = None,
) -> Path:
    """Draws the predictions for one image into a PNG.

    Args:
        path: the PNG; its folder is made where it is missing.
        image: (H, W, 3) uint8 RGB.
        instances: as for `CellVisualizer.draw_instance_predictions`.
        names: of the classes.
        style: what is drawn, and how large.

    Returns:
        the path.
    """
    return save_png(path, draw_predictions(image, instances, cell_metadata(names), style))


class CellCollector:
    """Holds the cells of one image until all are there.

    Args:
        image_size: (H, W) in pixels.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        nothing = Instances(
            image_size,
            pred_boxes=Boxes(torch.zeros(0, 4)),
            scores=torch.zeros(0),
            pred_classes=torch.zeros(0, dtype=torch.int64),
            pred_masks=RLEMasks([], image_size),
        )
        self._parts = [nothing]

    def add(self, cells: Instances, first_id: int) -> None:
        """Takes some cells.

        Args:
            cells: with `pred_boxes`, `scores`, `pred_classes` and `pred_masks` (`RLEMasks`).
            first_id: of the first one; no id is drawn.
        """
        self._parts.append(cells)

    def cells(self) -> Instances:
        """All cells taken."""
        return Instances.cat(self._parts)


@contextmanager
def open_prediction_overlay(
    path: str | PathLike[str], image: NDArray[np.uint8], names: Sequence[str]
) -> Iterator[CellCollector]:
    """Opens an overlay that is drawn into a PNG once all cells are there.

    Args:
        path: the PNG; its folder is made where it is missing.
        image: (H, W, 3) uint8 RGB.
        names: of the classes.
    """
    collector = CellCollector((image.shape[0], image.shape[1]))
    yield collector
    save_prediction_overlay(path, image, collector.cells(), names)


def _with_legend(
    picture: NDArray[np.uint8], metadata: Metadata, classes: Sequence[int]
) -> NDArray[np.uint8]:
    names = metadata.get("thing_classes", [])
    num_classes = max([len(names), *(k + 1 for k in classes)])
    names = [*names, *class_names(num_classes)[len(names) :]]
    counts = np.bincount(np.asarray(classes, np.int64), minlength=num_classes).tolist()
    return add_legend(picture, names, metadata_colors(metadata, num_classes), counts)
