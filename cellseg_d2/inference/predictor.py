"""From images to their cells, as a config says: whole or in tiles, once or in several views."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances

from ..config import require_fixed_normalization
from ..data.config_reader import image_reader, reading_options
from ..data.tiff_window import ArrayWindows, ImageWindows, check_image_array, open_windows
from ..errors import ConfigError
from .ensemble import MergedFinder
from .finder import BATCH_PIXELS, Finder, ModelFinder
from .out_of_memory import MemoryGuard
from .tiling import predict_tiled
from .tta import augmented_finders, views_of

logger = logging.getLogger(__name__)

Source = np.ndarray | str | PathLike[str]


class CellPredictor:
    """One trained model, or several, with all that ``TEST`` asks for.

    From the inside out: each model sees each view of an image (``TEST.TTA``); the answers of all
    views and models are merged into one (``TEST.MERGE``); an image larger than ``TEST.TILE.SIZE``
    is found so tile by tile, and the tiles' cells are joined. Each tile is resized as an image is,
    by ``INPUT.MIN_SIZE_TEST``. All answers are in the coordinates of the image given, on the CPU.

    Several models are kept in memory and run one after the other. What does not fit into memory is
    tried with fewer images at a time, then in tiles (``MemoryGuard``).

    Args:
        cfg: of the model; not changed.
        weights: checkpoints that fit the config, which count alike; none for ``MODEL.WEIGHTS``.

    Raises:
        CellDataError: for weights that are not given, not there, unsafe to load, or not this
            model's.
        ConfigError: for a config whose normalisation only training settles, or settings under
            ``TEST`` out of range.
    """

    def __init__(self, cfg: CfgNode, weights: Sequence[str | PathLike[str]] = ()) -> None:
        require_fixed_normalization(cfg)
        transforms, scales = views_of(cfg)
        self.tile_size, self.tile_overlap = _tiles_of(cfg)
        self.cfg = cfg.clone()
        paths = [str(path) for path in weights] or [cfg.MODEL.WEIGHTS]
        self.models = [ModelFinder(self.cfg, path) for path in paths]
        finders = [f for model in self.models for f in augmented_finders(model, transforms, scales)]
        self._find: Finder = finders[0]
        if len(finders) > 1:
            self._find = MergedFinder.from_config(cfg, finders)
            logger.info(
                "each image is seen %d times: %d models, transforms %s, scales %s",
                len(finders),
                len(paths),
                ", ".join(transforms),
                ", ".join(f"{scale:g}" for scale in scales),
            )
        may_cut = cfg.MODEL.MASK_ON and cfg.INPUT.MIN_SIZE_TEST == 0
        self._find = MemoryGuard(self._find, self.tile_overlap, may_cut)
        self._read = image_reader(cfg)

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """Find the cells of one image.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            ``{"instances": Instances}`` as ``DefaultPredictor`` answers, with ``pred_boxes``
            (XYXY, pixels of ``image``), ``scores`` in [0, 1], ``pred_classes`` from 0, and
            ``pred_masks`` (``RLEMasks``), best score first.

        Raises:
            ValueError: for an array of another shape or type.
        """
        (instances,) = self.predict_all([image])
        return {"instances": instances}

    def find_batch(self, images: list[np.ndarray]) -> list[Instances]:
        """Find the cells of some images, none of them tiled.

        Args:
            images: (H, W, 3) uint8, RGB, of any sizes; those of one size run together.

        Returns:
            For each image its ``Instances``, as ``__call__`` has them.

        Raises:
            ValueError: for an array of another shape or type.
        """
        for image in images:
            check_image_array(image)
        return self._find(images) if images else []

    def predict_all(self, items: Iterable[Source]) -> Iterator[Instances]:
        """Find the cells of many images, a few of which are in memory at a time.

        Args:
            items: arrays (H, W, 3) uint8 RGB, or paths of files, read as ``INPUT.CELL`` says; taken
                as they are needed.

        Yields:
            For each item, in order, its ``Instances``, as ``__call__`` has them.

        Raises:
            CellDataError: for a file that cannot be read.
            ValueError: for an array of another shape or type.
        """
        waiting: list[np.ndarray] = []
        pixels = 0
        for item in items:
            with self._tiled(item) as windows:
                if windows is not None:
                    yield from self.find_batch(waiting)
                    waiting, pixels = [], 0
                    yield self._joined(windows)
                    continue
            image = item if isinstance(item, np.ndarray) else self._read(item)
            size = image.shape[0] * image.shape[1]
            if waiting and pixels + size > BATCH_PIXELS:
                yield from self.find_batch(waiting)
                waiting, pixels = [], 0
            waiting.append(image)
            pixels += size
        yield from self.find_batch(waiting)

    def stream(self, source: Source) -> Iterator[Instances]:
        """Find the cells of one image, in parts where it is tiled.

        Args:
            source: a file, of which a tiled image is never read whole, or an array.

        Yields:
            Parts of the answer, each as ``__call__`` has it and of the whole image's size; a cell
            is in one part alone. An image that is not tiled is one part.

        Raises:
            CellDataError: for a file that cannot be read.
            ValueError: for an array of another shape or type.
        """
        with self._tiled(source) as windows:
            if windows is not None:
                yield from self._parts(windows)
                return
        image = source if isinstance(source, np.ndarray) else self._read(source)
        yield from self.find_batch([image])

    def _parts(self, windows: ImageWindows) -> Iterator[Instances]:
        return predict_tiled(self.find_batch, windows, self.tile_size, self.tile_overlap)

    def _joined(self, windows: ImageWindows) -> Instances:
        cells = Instances.cat(list(self._parts(windows)))
        return cells[cells.scores.argsort(descending=True, stable=True)]

    @contextmanager
    def _tiled(self, source: Source) -> Iterator[ImageWindows | None]:
        """Open an image that is to be tiled; None where it is to be read whole."""
        if isinstance(source, np.ndarray):
            check_image_array(source)
        if self.tile_size == 0 or (
            isinstance(source, np.ndarray) and max(source.shape[:2]) <= self.tile_size
        ):
            yield None
        elif isinstance(source, np.ndarray):
            yield ArrayWindows(source)
        else:
            with open_windows(source, **reading_options(self.cfg)) as windows:
                is_larger = max(windows.height, windows.width) > self.tile_size
                yield windows if is_larger else None


def _tiles_of(cfg: CfgNode) -> tuple[int, int]:
    """Read ``TEST.TILE``: the side of a tile, 0 for none, and the overlap."""
    size, overlap = cfg.TEST.TILE.SIZE, cfg.TEST.TILE.OVERLAP
    if size == 0:
        return 0, overlap
    if size < 0 or not 0 <= overlap < size:
        raise ConfigError(
            f"TEST.TILE.SIZE is {size} and OVERLAP {overlap}; a tile's side is positive, or 0 for "
            "whole images, and tiles overlap by less than that"
        )
    if not cfg.MODEL.MASK_ON:
        raise ConfigError("tiles are joined by their masks, and MODEL.MASK_ON is False")
    if cfg.INPUT.MIN_SIZE_TEST:
        logger.warning(
            "tiles of %d pixels are resized to INPUT.MIN_SIZE_TEST, %d; 0 keeps their size",
            size,
            cfg.INPUT.MIN_SIZE_TEST,
        )
    return size, overlap
