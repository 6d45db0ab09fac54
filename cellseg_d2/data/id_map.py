"""The file that says which number each test image has in a submission."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import CellDataError
from .layout import IMAGE_FILE, image_name

# Unicode's categories of control characters, surrogates, line and paragraph separators.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
_EXAMPLE = '[{"file_name": "<name>.tif", "id": 1, "height": 512, "width": 512}, …]'


@dataclass(frozen=True)
class IdMapEntry:
    """One image of an id map.

    Attributes:
        file_name: a plain file name, without folders.
        id: the image's number in a submission, at least 0.
        height: pixels, at least 1.
        width: pixels, at least 1.
    """

    file_name: str
    id: int
    height: int
    width: int


def read_id_map(path: str | PathLike[str]) -> dict[str, IdMapEntry]:
    """Reads an id map, a JSON list of ``{"file_name", "id", "height", "width"}``.

    Args:
        path: the JSON file. Further keys in an entry are ignored.

    Returns:
        {image name (the file name's stem): entry}, in the file's order.

    Raises:
        CellDataError: the file cannot be read or is not such a list; a name holds a folder
            (``..``, an absolute path); two entries share a name or an id.
    """
    if Path(path).exists() and not Path(path).is_file():  # reading a pipe would wait for ever
        raise _fault(path, "a folder, device or pipe")
    try:
        entries = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _fault(path, f"a file that cannot be read as JSON ({reason})") from error
    if not isinstance(entries, list):
        raise _fault(path, f"a JSON {type(entries).__name__}")
    by_name: dict[str, IdMapEntry] = {}
    names_by_id: dict[int, str] = {}
    for index, fields in enumerate(entries):
        entry = _read_entry(path, index, fields)
        name = image_name(entry.file_name)
        if name in by_name:
            raise _fault(path, f"two entries for the image {name!r}")
        if entry.id in names_by_id:
            raise _fault(
                path, f"the id {entry.id} given to {names_by_id[entry.id]!r} and to {name!r}"
            )
        by_name[name] = entry
        names_by_id[entry.id] = name
    return by_name


def check_in_id_map(
    file_name: str | PathLike[str], size: tuple[int, int], id_map: Mapping[str, IdMapEntry]
) -> IdMapEntry:
    """Finds an image's entry and checks it against the file.

    Args:
        file_name: the image.
        size: its (height, width) in pixels.
        id_map: what ``read_id_map`` gave.

    Returns:
        The image's entry.

    Raises:
        CellDataError: the image is not in the map, has another size there, or is a link to a
            file outside its folder.
    """
    path = Path(file_name)
    try:
        target = path.resolve()
        inside = target.is_relative_to(path.parent.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # Python 3.11's word for a circle of links
        raise CellDataError(
            path,
            f"a path that leads nowhere ({error})",
            "a file in the folder of test images",
            "replace the link with the file itself",
        ) from error
    if not inside:
        raise CellDataError(
            path,
            f"a link out of its folder, to {target}",
            "a file in the folder of test images",
            "copy the file, or link the folder as a whole",
        )
    entry = id_map.get(image_name(path))
    if entry is None:
        raise CellDataError(
            path,
            "an image that the id map does not name",
            "an entry for each image",
            "add it to the id map, move it away, or predict without an id map",
        )
    if (entry.height, entry.width) != tuple(size):
        raise CellDataError(
            path,
            f"{size[0]}×{size[1]} pixels (height × width)",
            f"{entry.height}×{entry.width} as the id map says",
            "check that the id map belongs to these images",
        )
    return entry


def missing_images(
    file_names: Iterable[str | PathLike[str]], id_map: Mapping[str, IdMapEntry]
) -> list[str]:
    """Returns the file names of the map that are not among ``file_names``, in the map's order."""
    present = {image_name(file_name) for file_name in file_names}
    return [entry.file_name for name, entry in id_map.items() if name not in present]


def _fault(path: str | PathLike[str], found: str) -> CellDataError:
    return CellDataError(path, found, f"a list such as {_EXAMPLE}", "correct the id map")


def _read_entry(path: str | PathLike[str], index: int, fields: Any) -> IdMapEntry:
    where = f"entry {index + 1}"
    if not isinstance(fields, dict):
        raise _fault(path, f"a JSON {type(fields).__name__} as {where}")
    name = fields.get("file_name")
    if not isinstance(name, str):
        raise _fault(path, f"no file_name, or one that is no text, in {where}")
    # Both separators on every system: a map written elsewhere must not reach another folder here.
    if name in ("", ".", "..") or any(mark in name for mark in ("/", "\\", "\0")):
        raise _fault(path, f"the file_name {name!r}, which is not a plain file name, in {where}")
    # Line breaks, and half characters that no file name can have.
    if any(unicodedata.category(mark) in _UNPRINTABLE for mark in name):
        raise _fault(path, f"the file_name {ascii(name)}, which cannot be printed, in {where}")
    if name == IMAGE_FILE:
        raise _fault(path, f"the file_name {name}, which says nothing about the image, in {where}")
    numbers = {}
    for key, least in (("id", 0), ("height", 1), ("width", 1)):
        value = fields.get(key)
        if type(value) is not int or value < least:  # bool is an int, and no number here
            raise _fault(path, f"{key} = {value!r} for {name!r} (an integer ≥ {least} is needed)")
        numbers[key] = value
    return IdMapEntry(name, numbers["id"], numbers["height"], numbers["width"])
