"""Cells as GeoJSON that QuPath opens (version 0.4 and later: File > Import objects from file).

A file is a ``FeatureCollection`` (RFC 7946) with one ``Feature`` a cell::

    {"type": "Feature", "id": 7,
     "geometry": {"type": "Polygon", "coordinates": [[[x, y], …], …]},
     "properties": {"objectType": "detection", "name": "7",
                    "classification": {"name": "epithelial", "color": [255, 200, 0]},
                    "measurements": {"score": 0.93}}}

The properties are those of QuPath's own export; a detection is its object for what is many and
small. Coordinates are pixels of the whole image, (0, 0) its upper left corner. Outlines run along
the edges of pixels: what lies within is the mask exactly (``polygons.mask_polygons``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, BinaryIO

from detectron2.structures import Instances

from ..checkpoint.files import replace_file
from ..visualization.colors import class_colors
from .cells import Cell, iter_cells
from .polygons import mask_polygons


class GeoJSONWriter:
    """Write features as they come, one a line.

    Args:
        file: open for writing; ``open_geojson`` opens one that appears whole or not at all.
        class_names: one for each category.
    """

    def __init__(self, file: BinaryIO, class_names: Sequence[str]) -> None:
        self._file = file
        self._classes = [
            {"name": name, "color": list(color)}
            for name, color in zip(class_names, class_colors(len(class_names)), strict=True)
        ]
        self._empty = True
        file.write(b'{"type": "FeatureCollection", "features": [')

    def add(self, cells: Instances, first_id: int) -> None:
        """Write some cells.

        Args:
            cells: with ``scores``, ``pred_classes`` and ``pred_masks`` (``RLEMasks``), none of them
                empty.
            first_id: id of the first one; the others follow.
        """
        for cell in iter_cells(cells, first_id):
            self._file.write(b"\n" if self._empty else b",\n")
            self._empty = False
            self._file.write(json.dumps(self._feature(cell), allow_nan=False).encode("ascii"))

    def finish(self) -> None:
        """End the collection; nothing can be added any more."""
        self._file.write(b"\n]}\n")

    def _feature(self, cell: Cell) -> dict[str, Any]:
        return {
            "type": "Feature",
            "id": cell.id,
            "geometry": cell_geometry(cell),
            "properties": {
                "objectType": "detection",
                # QuPath keeps no number as an id; by this name a cell is found in the other files.
                "name": str(cell.id),
                "classification": self._classes[cell.category],
                "measurements": {"score": cell.score},
            },
        }


@contextmanager
def open_geojson(path: str | PathLike[str], class_names: Sequence[str]) -> Iterator[GeoJSONWriter]:
    """Open a GeoJSON file that takes its name once all of it is written.

    Args:
        path: the file; its folder is made where it is missing.
        class_names: one for each category.
    """
    with replace_file(path) as file:
        writer = GeoJSONWriter(file, class_names)
        yield writer
        writer.finish()


def cell_geometry(cell: Cell) -> dict[str, Any]:
    """Return a cell's outline as a geometry of GeoJSON.

    Args:
        cell: with at least one pixel.

    Returns:
        A ``Polygon`` (outer ring, then holes), or a ``MultiPolygon`` where parts of the cell share
        no edge. Rings are closed; on x and y the outer ones have a positive area.
    """
    polygons = [
        [[*ring.tolist(), ring[0].tolist()] for ring in rings]
        for rings in mask_polygons(cell.mask, cell.corner)
    ]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}
