"""Detectron2 dicts of images without annotations: a test folder, or whatever is to be predicted."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import CellDataError
from .id_map import IdMapEntry, check_in_id_map, missing_images, read_id_map
from .layout import ID_MAP_FILE, TEST_FOLDER, list_tiffs, subfolders, tiffs_in, unique_image_names
from .tiff import read_size

_MOST_LISTED = 20

Collected = tuple[list[dict[str, Any]], list[CellDataError]]
"""Dicts of the sound images, and one error for each of the others."""


def load_image_dicts(
    file_names: Sequence[str | PathLike[str]],
    id_map: Mapping[str, IdMapEntry] | None = None,
) -> list[dict[str, Any]]:
    """Makes dicts of images without annotations; only their headers are read.

    Args:
        file_names: the images, in any order.
        id_map: what ``read_id_map`` gave; it may name more images than these. Without one, ids
            count from 1 in the order of the images' names.

    Returns:
        Dicts of ``file_name`` (str), ``image_id``, ``height``, ``width`` (pixels), sorted by the
        images' names.

    Raises:
        CellDataError: a file cannot be used, two images have one name, or an image does not
            agree with the id map; with several faults, the message lists them.
    """
    dicts, faults = collect_image_dicts(file_names, id_map)
    if faults:
        raise_faults(os.path.commonpath([os.path.abspath(f.path) for f in faults]), faults)
    return dicts


def collect_image_dicts(
    file_names: Sequence[str | PathLike[str]],
    id_map: Mapping[str, IdMapEntry] | None = None,
) -> Collected:
    """Does what ``load_image_dicts`` does, but returns the faulty images' errors.

    Raises:
        CellDataError: two images have one name.
    """
    by_name = dict(zip(unique_image_names(file_names), file_names, strict=True))
    dicts, faults = [], []
    for count, (_, file_name) in enumerate(sorted(by_name.items()), 1):
        try:
            height, width = read_size(file_name)
            image_id = count
            if id_map is not None:
                image_id = check_in_id_map(file_name, (height, width), id_map).id
        except CellDataError as fault:
            faults.append(fault)
            continue
        dicts.append(
            {
                "file_name": os.fspath(file_name),
                "image_id": image_id,
                "height": height,
                "width": width,
            }
        )
    return dicts, faults


def collect_test_dicts(root: str | PathLike[str]) -> Collected:
    """Makes dicts of the images of ``test_release/``, with the ids of the id map if there is one.

    Returns:
        The dicts, and one error for each faulty image and for each entry of the id map that has
        no image.

    Raises:
        CellDataError: there is no test image, two have one name, or the id map cannot be used.
    """
    folder, id_map_file = Path(root) / TEST_FOLDER, Path(root) / ID_MAP_FILE
    files = list_tiffs(folder)
    # A broken link is a map that cannot be read, not the absence of one.
    id_map = read_id_map(id_map_file) if os.path.lexists(id_map_file) else None
    dicts, faults = collect_image_dicts(files, id_map)
    for below in subfolders(folder):
        if tiffs_in(below):
            faults.append(
                CellDataError(
                    below,
                    "a folder of TIFFs",
                    f"test images directly in {TEST_FOLDER}",
                    "move them there, or out of the data set",
                )
            )
    for missing in missing_images(files, id_map or {}):
        faults.append(
            CellDataError(
                folder / missing,
                "nothing",
                f"an image, which {ID_MAP_FILE} names",
                "complete the folder, or correct the id map",
            )
        )
    return dicts, faults


def raise_faults(root: str | PathLike[str], faults: Sequence[CellDataError]) -> None:
    """Raises the one fault there is, or one error that lists them; returns if there is none.

    Args:
        root: what the faults are in, the path of an error that lists several.
        faults: any number of them.
    """
    if len(faults) == 1:
        raise faults[0]
    if faults:
        lines = "".join(f"\n  {fault}" for fault in faults[:_MOST_LISTED])
        if len(faults) > _MOST_LISTED:
            lines += f"\n  and {len(faults) - _MOST_LISTED} more"
        raise CellDataError(
            root,
            f"{len(faults)} faults:{lines}\n",
            "none",
            "correct these files or move them out of the data set (tools/inspect_dataset.py lists "
            "all of them)",
        )
