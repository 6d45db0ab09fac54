"""TIFFs to start from, and changes that know where a TIFF keeps its numbers.

The layout of directories is that of the TIFF 6.0 specification (Adobe, 1992), section 2.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from .mutation import mutate_bytes, pick_integer

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}
_MOST_DIRECTORIES = 20
_MOST_REAL_BYTES = 1 << 20


def written(array: np.ndarray, **options: Any) -> bytes:
    """Return the file that tifffile writes of an array."""
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def tiff_seeds() -> dict[str, bytes]:
    """Return small sound files by name, of every kind that is read."""
    rng = np.random.default_rng(0)
    height, width = 21, 34
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([30 + 4 * rows, 220 - 3 * columns, 60 + rows + columns], 2).astype(np.uint8)
    noise = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    rgba = np.dstack([noise, np.full((height, width), 255, np.uint8)])
    ids = (rows // 5 * 7 + columns // 6).astype(np.uint16)
    rgb = {"photometric": "rgb"}
    tiled = {"tile": (16, 16)}
    floats = rng.random((height, width)).astype(np.float32)
    seeds = {
        "strips": written(noise, **rgb, rowsperstrip=4),
        "tiles": written(noise, **rgb, **tiled),
        "lzw": written(noise, **rgb, compression="lzw", rowsperstrip=5, predictor=True),
        "lzw_tiles": written(noise, **rgb, **tiled, compression="lzw"),
        "deflate": written(noise, **rgb, compression="zlib", predictor=True),
        "deflate_tiles": written(noise, **rgb, **tiled, compression="zlib"),
        "packbits": written(ids.astype(np.uint8), compression="packbits", rowsperstrip=3),
        "jpeg_tiles": written(smooth, **rgb, **tiled, compression="jpeg"),
        "planar": written(noise.transpose(2, 0, 1), **rgb, planarconfig="separate", rowsperstrip=6),
        "planar_lzw": written(
            rgba.transpose(2, 0, 1), **rgb, planarconfig="separate", compression="lzw"
        ),
        "rgba": written(rgba, **rgb, compression="lzw", extrasamples=["unassalpha"]),
        "big": written(noise, **rgb, bigtiff=True, compression="zlib"),
        "big_endian": written(noise.astype(np.uint16) * 99, **rgb, byteorder=">", rowsperstrip=4),
        "uint16": written(ids, compression="zlib", rowsperstrip=7),
        "uint16_predictor": written(noise.astype(np.uint16) * 9, **rgb, compression="lzw", **tiled),
        "int32": written(ids.astype(np.int32), compression="lzw"),
        "float32": written(floats, compression="zlib", predictor=True, **tiled),
        "float64": written(ids.astype(np.float64), compression="lzw", bigtiff=True),
        "float64_plain": written(ids.astype(np.float64)),
        "bits": written(ids % 2 == 1, photometric="minisblack"),
        "inverted": written(noise[:, :, 0], photometric="miniswhite"),
        "pages": written(np.stack([noise] * 3), **rgb, compression="lzw"),
        "ome": written(ids, ome=True, compression="zlib"),
        "ome_pages": written(np.stack([ids] * 2), ome=True, metadata={"axes": "ZYX"}),
        "imagej": written(np.stack([ids] * 2), imagej=True),
        "shaped": written(np.stack([ids] * 2), truncate=True),
        "range": written(
            ids, extratags=[(280, "H", 1, 3, True), (281, "H", 1, 90, True)], compression="lzw"
        ),
        "bomb": written(np.zeros((1200, 1200), np.uint8), compression="zlib", rowsperstrip=1200),
        "bomb_lzw": written(np.zeros((1000, 1200), np.uint16), compression="lzw", rowsperstrip=50),
    }
    for mode, compression in (("RGB", "jpeg"), ("L", "jpeg"), ("P", "tiff_lzw"), ("LA", None)):
        file = io.BytesIO()
        Image.fromarray(smooth).convert(mode).save(file, "TIFF", compression=compression)
        seeds[f"pillow_{mode}"] = file.getvalue()
    return seeds


def real_seeds(folder: Path) -> dict[str, bytes]:
    """Return the files of a real annotated image, where it is there; small ones only."""
    paths = sorted(folder.glob("*.tif")) if folder.is_dir() else []
    small = [path for path in paths if path.stat().st_size <= _MOST_REAL_BYTES]
    return {f"real_{path.stem}": path.read_bytes() for path in small}


def mutate_tiff(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change a file's structure, its bytes, or both."""
    if rng.random() < 0.7:
        for _ in range(rng.choice((1, 1, 2, 4))):
            data = _change_number(rng, data)
    if rng.random() < 0.45:
        data = mutate_bytes(rng, data, others)
    return data


def _change_number(rng: Random, data: bytes) -> bytes:
    order, numbers, directories = number_fields(data)
    if not numbers:
        return data
    position, size = rng.choice(numbers)
    kind = rng.random()
    if kind < 0.15:  # a value of another field: a chain of pages in a circle, data that are shared
        source, length = rng.choice(numbers)
        value = _read(data, source, length, order)
    elif kind < 0.25:
        value = rng.choice(directories or [8])
    elif kind < 0.4:
        value = _read(data, position, size, order) + rng.choice((-2, -1, 1, 2, 8, 1000))
    elif kind < 0.5:
        value = rng.randrange(len(data) + 10)
    elif kind < 0.6:
        value = rng.choice((254, 256, 257, 258, 259, 262, 277, 284, 317, 320, 322, 330, 338, 339))
    else:
        value = pick_integer(rng)
    number = (value % (1 << 8 * size)).to_bytes(size, "big" if order == ">" else "little")
    return data[:position] + number + data[position + size :]


def number_fields(data: bytes) -> tuple[str, list[tuple[int, int]], list[int]]:
    """Find the numbers of a TIFF's header, directories and tags.

    Returns:
        the byte order, "<" or ">"; (position, bytes) of each number, all of which lie inside the
        file; the positions of the directories.
    """
    order = ">" if data[:2] == b"MM" else "<"
    if len(data) < 16:
        return order, [], []
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    word, count_size, entry = (8, 8, 20) if big else (4, 2, 12)
    numbers, directories = [(2, 2), (8 if big else 4, word)], []
    directory = _read(data, 8 if big else 4, word, order)
    while 0 < directory < len(data) - count_size and directory not in directories:
        directories.append(directory)
        tags = _read(data, directory, count_size, order)
        numbers.append((directory, count_size))
        end = directory + count_size + tags * entry
        if tags > 200 or end + word > len(data) or len(directories) > _MOST_DIRECTORIES:
            break
        for at in range(directory + count_size, end, entry):
            numbers += [(at, 2), (at + 2, 2), (at + 4, word), (at + 4 + word, word)]
            size = _SIZES.get(_read(data, at + 2, 2, order), 1)
            count = _read(data, at + 4, word, order)
            numbers += [(at + 4 + word, size)] * (size < word)
            values = _read(data, at + 4 + word, word, order)
            if size * count > word and values + size * count <= len(data):
                numbers += [(values + i * size, size) for i in range(min(count, 6))]
        numbers.append((end, word))
        directory = _read(data, end, word, order)
    return order, [(at, size) for at, size in numbers if at + size <= len(data)], directories


def _read(data: bytes, position: int, size: int, order: str) -> int:
    return int.from_bytes(data[position : position + size], "big" if order == ">" else "little")
