"""All files that one image's answer becomes, written while its parts come in."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances
from numpy.typing import NDArray

from ..data import read_image
from ..data.config_reader import reading_options
from ..data.layout import image_name, list_names
from ..data.tiff_window import ArrayWindows, ImageWindows, open_windows
from ..errors import CellDataError, ConfigError
from ..visualization.overlay import open_prediction_overlay
from .cells import select_cells
from .geojson import open_geojson
from .label_tiff import open_label_folder
from .measurements import open_measurements
from .parts import Parts
from .pixel_size import read_pixel_size
from .submission import instances_to_entries

logger = logging.getLogger(__name__)

_SUFFIXES = {"labels": "", "geojson": ".geojson", "measurements": ".csv", "overlays": ".png"}


class CellWriter(Protocol):
    """What takes the cells of one image, part by part."""

    def add(self, cells: Instances, first_id: int) -> None:
        """Write some cells, whose ids go on from the first one's."""


@dataclass(frozen=True)
class OutputOptions:
    """What is written for an image beside its entries of the submission.

    Attributes:
        labels: label TIFFs, to ``labels/<name>/``.
        geojson: outlines, to ``geojson/<name>.geojson``.
        csv: measurements, to ``measurements/<name>.csv``.
        overlay: a picture, to ``overlays/<name>.png``.
        score_threshold: cells of a lower score are submitted, but in none of these.
    """

    labels: bool = False
    geojson: bool = False
    csv: bool = False
    overlay: bool = False
    score_threshold: float = 0.5


class ImageOutputs:
    """Write what a run says about an image: its part of the submission, and what else is asked for.

    Cells are numbered from 1 in the order of the answer; a cell has the same number in every file.

    Args:
        output_dir: the run's folder.
        cfg: says how images are read, and names the classes.
        options: what is written.
        parts: where the entries of the submission go.

    Raises:
        ConfigError: for a model without masks.
    """

    def __init__(
        self, output_dir: str | PathLike[str], cfg: CfgNode, options: OutputOptions, parts: Parts
    ) -> None:
        if not cfg.MODEL.MASK_ON:
            raise ConfigError("all that is written is made of masks, and MODEL.MASK_ON is False")
        self._folder, self._options, self._parts = Path(output_dir), options, parts
        self._class_names: list[str] = list(cfg.DATASETS.CELL.CLASS_NAMES)
        self._reading = reading_options(cfg)
        self._max_pixels: int = cfg.INPUT.CELL.MAX_PIXELS

    def refuse_leftovers(self, items: Sequence[dict[str, Any]]) -> None:
        """Refuse a folder with files of a former run that this one would not replace.

        They would stand beside the submission as if they belonged to it: files of other images, or
        of a kind that is not asked for this time.

        Args:
            items: dicts of all images of the run.

        Raises:
            CellDataError: naming the folder, and how many files there are in it.
        """
        replaced = {path for item in items for path in self._paths(item)}
        for kind in _SUFFIXES:
            folder = self._folder / kind
            found = sorted(folder.iterdir()) if folder.is_dir() else []
            # What an interrupted run leaves half-written is no output.
            found = [path for path in found if path.name[0] != "." and path.suffix != ".part"]
            leftovers = [path.name for path in found if path not in replaced]
            if leftovers:
                raise CellDataError(
                    folder,
                    f"{len(leftovers)} of a former run's outputs that this one does not replace "
                    f"({list_names(leftovers)})",
                    "an output folder without them",
                    "give another --output, or remove that folder first",
                )

    def are_done(self, item: dict[str, Any]) -> bool:
        """Return whether a former run with the same question has written all of an image's files.

        Args:
            item: the image's dict.
        """
        return self._parts.is_done(item) and all(path.exists() for path in self._paths(item))

    def write(self, item: dict[str, Any], answer: Iterable[Instances]) -> None:
        """Write all files of one image; each of them whole, the part of the submission last.

        No more than a part of the answer is held, but for an overlay.

        Args:
            item: the image's dict: ``file_name``, ``image_id``, ``height``, ``width``.
            answer: parts of it, ``Instances`` of the whole image's size with ``scores``,
                ``pred_classes``, ``pred_boxes`` and ``pred_masks`` (``RLEMasks``).

        Raises:
            CellDataError: for an image that cannot be read, or is no longer of the size that it
                had when the run began; also as raised by ``answer``.
            OSError: for files that cannot be written.
        """
        # What is entered first is left last: the part says that all else is there.
        with ExitStack() as stack:
            part = stack.enter_context(self._parts.open(item))
            writers = self._open_writers(item, stack)
            first_id = 1
            for instances in answer:
                instances = instances.to("cpu")
                _check_size(item, instances.image_size)
                part.add(instances_to_entries(instances, item["image_id"]))
                shown = select_cells(instances, self._options.score_threshold)
                for writer in writers:
                    writer.add(shown, first_id)
                first_id += len(shown)

    def _open_writers(self, item: dict[str, Any], stack: ExitStack) -> list[CellWriter]:
        path, names = self._path, self._class_names
        size = (item["height"], item["width"])
        options = self._options
        pixel_size = read_pixel_size(item["file_name"]) if options.labels or options.csv else None
        contexts: list[AbstractContextManager[CellWriter]] = []
        if options.labels:
            folder = path(item, "labels")
            contexts.append(open_label_folder(folder, item["file_name"], size, pixel_size))
        if options.geojson:
            contexts.append(open_geojson(path(item, "geojson"), names))
        if options.csv or options.overlay:
            small = self._is_small(item)
            image = read_image(item["file_name"], **self._reading) if small else None
            if options.csv:
                windows = stack.enter_context(self._windows(item, image))
                name = image_name(item["file_name"])
                table = path(item, "measurements")
                contexts.append(open_measurements(table, name, names, windows, pixel_size))
            if options.overlay and image is not None:
                contexts.append(open_prediction_overlay(path(item, "overlays"), image, names))
            elif options.overlay:
                logger.warning(
                    "%s: no overlay of an image of more than INPUT.CELL.MAX_PIXELS (%d); its "
                    "GeoJSON (--geojson) shows the cells in QuPath",
                    item["file_name"],
                    self._max_pixels,
                )
        return [stack.enter_context(context) for context in contexts]

    def _paths(self, item: dict[str, Any]) -> list[Path]:
        """Where everything that is asked for goes."""
        options = self._options
        wanted = {
            "labels": options.labels,
            "geojson": options.geojson,
            "measurements": options.csv,
            "overlays": options.overlay and self._is_small(item),
        }
        return [self._path(item, kind) for kind, is_wanted in wanted.items() if is_wanted]

    def _path(self, item: dict[str, Any], kind: str) -> Path:
        return self._folder / kind / f"{image_name(item['file_name'])}{_SUFFIXES[kind]}"

    def _is_small(self, item: dict[str, Any]) -> bool:
        """Whether the image may be held as a whole."""
        return bool(item["height"] * item["width"] <= self._max_pixels)

    def _windows(
        self, item: dict[str, Any], image: NDArray[np.uint8] | None
    ) -> AbstractContextManager[ImageWindows]:
        if image is not None:
            return nullcontext(ArrayWindows(image))
        return open_windows(item["file_name"], **self._reading)


def _check_size(item: dict[str, Any], found: tuple[int, int]) -> None:
    size = (item["height"], item["width"])
    if tuple(found) != size:
        raise CellDataError(
            item["file_name"],
            f"an image of {found[0]}x{found[1]} pixels (height x width)",
            f"{size[0]}x{size[1]}, as when the run began",
            "leave the images alone while the run goes on; then run the command again",
        )
