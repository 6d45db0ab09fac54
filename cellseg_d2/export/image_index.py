"""Which image an id of a submission means."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from ..data.id_map import IdMapEntry, check_in_id_map, read_id_map
from ..data.layout import image_name, unique_image_names
from ..data.tiff import read_size
from ..errors import CellDataError
from ..inference.inputs import find_images


@dataclass(frozen=True)
class IndexedImage:
    """One image of the submission.

    Attributes:
        image_id: its number in the submission.
        name: what it is called in outputs.
        size: (H, W) in pixels; None where neither an id map nor a readable file states it.
        path: its file; None where there is none, as of an image that is in the id map alone.
    """

    image_id: int
    name: str
    size: tuple[int, int] | None
    path: Path | None


def index_images(
    id_map: str | PathLike[str] | None, images: str | PathLike[str] | None
) -> tuple[dict[int, IndexedImage], list[CellDataError]]:
    """Reads what is known about the images of a submission.

    Without an id map, ids count from 1 in the sorted order of the images' names.

    Args:
        id_map: the JSON file of file names, ids and sizes.
        images: the folder of images, as `find_images` reads it; only headers are read.

    Returns:
        {image id: image}, and a fault for every image that cannot be read or does not fit the id
        map.

    Raises:
        CellDataError: the id map or the folder as a whole cannot be used, or the folder holds no
            image that the map names.
    """
    files: dict[str, Path] = {}
    if images is not None:
        found = find_images([images])
        files = dict(zip(unique_image_names(found), found, strict=True))
    faults: list[CellDataError] = []
    if id_map is not None:
        entries = read_id_map(id_map)
        if files and entries and files.keys().isdisjoint(entries):
            raise CellDataError(
                images or "",
                f"none of the {len(entries)} images that {id_map} names",
                "the folder of these images",
                "check both paths",
            )
        known = {
            entry.id: _from_entry(entry, entries, files.get(name), faults)
            for name, entry in entries.items()
        }
        return known, faults
    known = {}
    for image_id, name in enumerate(sorted(files), start=1):
        try:
            size = read_size(files[name])
        except CellDataError as fault:
            faults.append(fault)
            size = None
        known[image_id] = IndexedImage(image_id, name, size, files[name])
    return known, faults


def _from_entry(
    entry: IdMapEntry,
    entries: dict[str, IdMapEntry],
    path: Path | None,
    faults: list[CellDataError],
) -> IndexedImage:
    if path is not None:
        try:
            check_in_id_map(path, read_size(path), entries)
        except CellDataError as fault:
            faults.append(fault)
    size = (entry.height, entry.width)
    return IndexedImage(entry.id, image_name(entry.file_name), size, path)
