"""One image under several draws of an augmentation recipe, as the model sees it in training."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode, Instances
from fvcore.transforms.transform import NoOpTransform, Transform, TransformList
from numpy.typing import NDArray

from ..data.augmentation.recipes import build_recipe
from ..data.dataset_mapper import CellDatasetMapper
from ..data.tiff import DEFAULT_MAX_PIXELS, read_image
from ..structures import encode_label_map
from .overlay import draw_ground_truth
from .sheets import SheetRow, contact_sheet, sheet_style, thumbnail
from .visualizer import OverlayStyle

_SIDE = 560
_ACROSS = 3
_TITLE_LINES = 5


@dataclass(frozen=True)
class DrawnSample:
    """One draw.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        annotations: of a Detectron2 dict, with bbox, bbox_mode, category_id and segmentation.
        names: of the transforms drawn, in order.
    """

    image: NDArray[np.uint8]
    annotations: list[dict[str, Any]]
    names: list[str]


def recipe_sheet(
    record: dict[str, Any],
    recipe: str,
    metadata: Metadata,
    style: OverlayStyle,
    *,
    draws: int = 8,
    seed: int = 0,
    channel_order: str = "RGB",
) -> NDArray[np.uint8]:
    """Draw an image as it is, then under each of several draws, masks on.

    Args:
        record: a dict of ``load_cell_dicts``.
        recipe: a key of ``RECIPES``.
        metadata: names and colours of the classes.
        style: of the masks; boxes and labels are left out.
        draws: how many.
        seed: see ``draw_samples``.
        channel_order: "RGB" or "BGR", what the file holds.

    Returns:
        The sheet, (H, W, 3) uint8 RGB; above each picture the names of the transforms drawn.
    """

    def row(title: str, image: NDArray[np.uint8], drawn_from: dict[str, Any]) -> SheetRow:
        picture = draw_ground_truth(image, drawn_from, metadata, sheet_style(style), legend=False)
        return SheetRow(title, [thumbnail(picture, _SIDE)])

    rows = [row("original", read_image(record["file_name"], channel_order), record)]
    for index, sample in enumerate(draw_samples(record, recipe, draws, seed, channel_order)):
        # Titles break at spaces, but not within a name.
        names = [name.replace(" ", "\N{NO-BREAK SPACE}") for name in sample.names]
        title = f"{index}: {', '.join(names) or 'nothing drawn'}"
        rows.append(row(title, sample.image, {"annotations": sample.annotations}))
    return contact_sheet(
        rows,
        ("",),
        metadata.thing_classes,
        metadata.thing_colors,
        side=_SIDE,
        across=_ACROSS,
        title_lines=_TITLE_LINES,
    )


def draw_samples(
    record: dict[str, Any], recipe: str, draws: int, seed: int = 0, channel_order: str = "RGB"
) -> Iterator[DrawnSample]:
    """Yield what the training loader makes of an image at the first positions of its stream.

    The numbers are those of ``CellDatasetMapper`` under this ``SEED`` where the config neither
    crops, pastes nor draws a size.

    Args:
        record: a dict of ``load_cell_dicts``; one without label maps is drawn bare.
        recipe: a key of ``RECIPES``.
        draws: how many.
        seed: of the draws, with the number of each.
        channel_order: "RGB" or "BGR", what the file holds.
    """
    recorder = _Recorder(build_recipe(recipe))
    mapper = CellDatasetMapper(
        "label_file_names" in record,
        augmentations=[recorder],
        image_format="RGB",
        channel_order=channel_order,
        max_pixels=DEFAULT_MAX_PIXELS,
        intensity_range=None,
        seed=seed,
    )
    for draw in range(draws):
        mapped = mapper(record, draw)
        image = np.ascontiguousarray(mapped["image"].numpy().transpose(1, 2, 0))
        annotations = _annotations(mapped["instances"]) if "instances" in mapped else []
        yield DrawnSample(image, annotations, transform_names(recorder.drawn))


def transform_names(transform: Transform) -> list[str]:
    """Return for people to read what a transform consists of: ["Rotate 12.3°", "Gamma 0.93"].

    Args:
        transform: of a recipe; one that composes several steps has an attribute ``names``.
    """
    if isinstance(transform, TransformList):
        return [name for part in transform.transforms for name in transform_names(part)]
    if isinstance(transform, NoOpTransform):
        return []
    if names := getattr(transform, "names", ()):
        return list(names)
    name = type(transform).__name__.removesuffix("Transform")
    parameters = inspect.signature(type(transform)).parameters
    values = {
        key: getattr(transform, key)
        for key, parameter in parameters.items()
        # A seed says nothing to a person, nor does what is as it always is.
        if key != "seed" and getattr(transform, key) != parameter.default
    }
    if len(values) == 1:
        return [f"{name} {_short(*values.values())}"]
    return [" ".join([name, *(f"{key} {_short(value)}" for key, value in values.items())])]


class _Recorder(T.Augmentation):
    """Applies augmentations in order and keeps what they drew last."""

    def __init__(self, augmentations: list[T.Augmentation]) -> None:
        super().__init__()
        self.augmentations = augmentations
        self.drawn: Transform = NoOpTransform()

    def __call__(self, aug_input: T.AugInput) -> Transform:
        self.drawn = T.AugmentationList(self.augmentations)(aug_input)
        return self.drawn


def _annotations(instances: Instances) -> list[dict[str, Any]]:
    masks, classes = instances.gt_masks, instances.gt_classes
    annotations = []
    for layer, label_map in enumerate(masks.label_maps.numpy()):
        here = masks.layers == layer
        categories = dict(zip(masks.ids[here].tolist(), classes[here].tolist(), strict=True))
        found = encode_label_map(label_map)
        for cell, box, rle in zip(
            found.ids.tolist(), found.boxes.tolist(), found.rles(), strict=True
        ):
            if cell in categories:  # what the instance rule left out stays out
                annotations.append(
                    {
                        "bbox": box,
                        "bbox_mode": BoxMode.XYXY_ABS,
                        "category_id": categories[cell],
                        "segmentation": rle,
                    }
                )
    return annotations


def _short(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_short, value))})"
    return f"{value:z.2f}" if isinstance(value, float) else str(value)
