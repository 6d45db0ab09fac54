"""Parsed annotations on disk, one file for each image, so that a second run starts at once.

An entry is a line with the SHA-256 of all that follows, a line of JSON (the key, and what the body
holds), and the body: for each class a table of integers and the run lengths. Nothing in it can run
code. It is used only if its key, with size and time of every file of the image, is the present one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from .instances import ImageInstances, LayerInstances
from .layout import ImageFolder

logger = logging.getLogger(__name__)

# To be raised whenever the entries or the meaning of the rules change.
_VERSION = 1
# The alphabet of COCO's compressed run lengths, and the blank that separates instances.
_COUNTS = re.compile(rb"[0-o ]*")
# Rows of id, area, x0, y0, x1, y1.
_TABLE_TYPE = "<i8"


class AnnotationCache:
    """A folder of parsed annotations.

    Two processes may use one folder: entries are written aside and then renamed into place. An
    entry that cannot be read or is damaged is a miss with a warning; a folder that cannot be
    written is a warning, once.

    Args:
        folder: made when the first entry is stored.
        instances: the instance rule.
        min_area: the smallest area kept, in pixels.
    """

    def __init__(self, folder: str | PathLike[str], instances: str, min_area: int) -> None:
        self._folder = Path(folder)
        self._rule = {"version": _VERSION, "instances": instances, "min_area": min_area}
        self._writable = True

    def key(self, image: ImageFolder) -> dict[str, Any] | None:
        """Returns what an entry must have been made from to be used, None for missing files.

        To be taken before the files are read, so that a change in between gives another key.
        """
        try:
            files = {
                path.name: [stat.st_size, stat.st_mtime_ns]
                for path in (image.image_file, *image.label_files.values())
                for stat in (path.stat(),)
            }
        except OSError:
            return None
        return {**self._rule, "folder": os.path.abspath(image.image_file.parent), "files": files}

    def load(self, key: dict[str, Any]) -> ImageInstances | None:
        """Returns the entry of this key, None if there is none that can be trusted."""
        path = self._path(key)
        try:
            if path.exists() and not path.is_file():  # reading a pipe would wait for ever
                raise ValueError("it is no file")
            checksum, _, content = path.read_bytes().partition(b"\n")
            if hashlib.sha256(content).hexdigest().encode() != checksum:
                raise ValueError("its checksum is wrong")
            line, _, body = content.partition(b"\n")
            header = json.loads(line)
            return _decode(header, body) if header["key"] == key else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            logger.warning("Parsing again: the cached annotations %s are unusable: %s", path, error)
            return None

    def store(self, key: dict[str, Any], instances: ImageInstances) -> None:
        """Keeps the instances under the key, in place of an older entry of the same image."""
        if not self._writable:
            return
        header, body = _encode(instances)
        content = json.dumps({"key": key, **header}).encode() + b"\n" + body
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=self._folder, suffix=".partial")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
                os.replace(partial, self._path(key))
            except BaseException:
                os.unlink(partial)
                raise
        except OSError as error:
            self._writable = False
            logger.warning("Annotations are not cached in %s: %s", self._folder, error)

    def _path(self, key: dict[str, Any]) -> Path:
        # Named after what stays when the files change, so that the new entry replaces the old.
        lasting = json.dumps([key["folder"], key["instances"], key["min_area"]])
        return self._folder / f"{hashlib.sha256(lasting.encode()).hexdigest()[:32]}.json"


def _encode(instances: ImageInstances) -> tuple[dict[str, Any], bytes]:
    layers, body = [], b""
    for layer in instances.layers:
        table = np.column_stack([layer.ids, layer.areas, layer.boxes]).astype(_TABLE_TYPE)
        counts = b" ".join(layer.counts)
        body += table.tobytes() + counts
        layers.append(
            {
                "category": layer.category,
                "num_dropped": layer.num_dropped,
                "instances": len(table),
                "counts_size": len(counts),
            }
        )
    return {"height": instances.height, "width": instances.width, "layers": layers}, body


def _decode(header: dict[str, Any], body: bytes) -> ImageInstances:
    """The inverse of ``_encode``; an error that ``load`` catches if something is out of place."""
    height, width = _natural(header["height"]), _natural(header["width"])
    if max(height, width) >= 2**31:  # else a table's limits do not fit its columns
        raise ValueError("its image is larger than any")
    limits = np.array([2**31, height * width + 1, width, height, width + 1, height + 1])
    layers, position = [], 0
    for fields in header["layers"]:
        size = _natural(fields["instances"])
        table = np.frombuffer(body, _TABLE_TYPE, 6 * size, position).reshape(size, 6)
        position += table.nbytes
        joined = body[position : position + _natural(fields["counts_size"])]
        position += fields["counts_size"]
        counts = joined.split()
        if len(counts) != size or not _COUNTS.fullmatch(joined):
            raise ValueError("its run lengths are not those of its instances")
        ids, areas, boxes = table[:, 0], table[:, 1], table[:, 2:]
        # Every number has a least value, given by the one before it or by the column.
        least = np.zeros_like(table)
        least[:, :2] = 1
        least[1:, 0] = ids[:-1] + 1
        least[:, 4:] = boxes[:, :2] + 1
        if (table < least).any() or (table >= limits).any():
            raise ValueError("its ids, areas or boxes are out of range")
        layers.append(
            LayerInstances(
                _natural(fields["category"]),
                ids.astype(np.int32),
                boxes.astype(np.int32),
                areas.astype(np.int64),
                counts,
                _natural(fields["num_dropped"]),
            )
        )
    if position != len(body):
        raise ValueError("its length is wrong")
    return ImageInstances(height, width, layers)


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"it holds {value!r} for a number")
    return value
