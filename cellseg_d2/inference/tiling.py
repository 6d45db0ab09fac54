"""Images of any size, predicted tile by tile in the memory of a few tiles."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from detectron2.structures import Instances

from ..data.tiff_window import ImageWindows
from ..errors import CellDataError
from .detections import Detections
from .finder import Finder
from .seams import SeamResolver
from .tile_grid import Tile, TileGrid, make_grid

logger = logging.getLogger(__name__)

MAX_IMAGE_PIXELS = 2**32 - 1  # pycocotools counts an RLE's pixels in 32 bits


def predict_tiled(
    find: Finder,
    windows: ImageWindows,
    tile_size: int,
    overlap: int,
    *,
    batch_size: int = 4,
    min_shared: float = 0.5,
) -> Iterator[Instances]:
    """Find the cells of an image in overlapping tiles, each cell once.

    Which tile's answer counts is defined in `seams`. With a finder that sees no further than the
    cell itself, the cells are exactly those that it finds in the whole image, on seams too, and
    also where a cell is larger than the overlap or the tiles. With a network, whose answer depends
    on the surroundings, they are those of a tile in which the cell is seen whole, if there is one.
    An overlap of the extent of the largest cell makes sure of that.

    Memory is that of one batch of tiles and of the cells of one row of tiles; time grows linearly
    with the area (``tools/benchmark.py tiling``).

    Args:
        find: the finder. Its answers for tiles of one size should not depend on what else is in the
            batch.
        windows: the image.
        tile_size: largest side of a tile in pixels (``TEST.TILE.SIZE``).
        overlap: pixels that neighbouring tiles share, at least (``TEST.TILE.OVERLAP``).
        batch_size: tiles of equal size given to ``find`` at a time, at most.
        min_shared: share of its pixels from which a detection is taken for another one's, or for a
            part of it; in (0, 1].

    Yields:
        For each row of tiles the cells that are complete with it, best score first: ``Instances``
        of the whole image's size, on the CPU, with ``pred_boxes``, ``scores``, ``pred_classes`` and
        ``pred_masks`` (``RLEMasks``). Cells without a pixel are left out.

    Raises:
        ConfigError: for a tile size below 1, or an overlap that is negative or no smaller.
        CellDataError: for an image of 2^32 pixels and more.
        ValueError: for a batch size below 1, or ``min_shared`` out of its range.
    """
    size = (windows.height, windows.width)
    grid = make_grid(size, tile_size, overlap)
    if batch_size < 1 or not 0 < min_shared <= 1:
        raise ValueError(
            f"batch_size {batch_size} below 1, or min_shared {min_shared} not in (0, 1]"
        )
    if size[0] * size[1] > MAX_IMAGE_PIXELS:
        raise CellDataError(
            windows.name,
            f"{size[0]}×{size[1]} pixels",
            "fewer than 2^32, which is what COCO's RLE can count",
            "cut the image into smaller ones",
        )
    return _predict_rows(find, windows, grid, batch_size, min_shared)


def _predict_rows(
    find: Finder, windows: ImageWindows, grid: TileGrid, batch_size: int, min_shared: float
) -> Iterator[Instances]:
    resolver = SeamResolver(grid, min_shared)
    for row in range(grid.num_rows):
        found: list[Detections] = []
        for batch in _batches([grid.tile(row, c) for c in range(grid.num_columns)], batch_size):
            images = [windows.read(*tile[-4:]) for tile in batch]
            answers = find(images)
            for tile, answer in zip(batch, answers, strict=True):
                found.append(Detections.from_instances(answer, tile, grid))
        yield resolver.settle(row, found)
    if resolver.num_joined:
        logger.info(
            "%s: %d cells larger than the overlap of tiles were joined from parts",
            windows.name,
            resolver.num_joined,
        )
    if resolver.num_cut:
        logger.warning(
            "%s: %d cells end at the border of a tile, because the next tile did not find the rest "
            "or they end there; a larger TEST.TILE.OVERLAP leaves fewer in doubt",
            windows.name,
            resolver.num_cut,
        )
    if resolver.num_denied:
        logger.info(
            "%s: %d detections that end at the border of a tile were left out, because the tile "
            "that shows them best did not find them",
            windows.name,
            resolver.num_denied,
        )


def _batches(tiles: Sequence[Tile], batch_size: int) -> Iterator[list[Tile]]:
    """Neighbours of equal size, up to ``batch_size`` at a time."""
    batch: list[Tile] = []
    for tile in tiles:
        if batch and (len(batch) == batch_size or tile[-2:] != batch[0][-2:]):
            yield batch
            batch = []
        batch.append(tile)
    yield batch
