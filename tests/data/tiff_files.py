"""TIFF files that several test modules write, and how a reader refuses one."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cellseg_d2.data.tiff import read_image
from cellseg_d2.errors import CellDataError

HEIGHT, WIDTH = 37, 53  # neither a multiple of the other tests' strips and tiles, nor square


def color_image(channels: int = 3, dtype: type = np.uint8, top: int = 256) -> np.ndarray:
    """Random values, so that no two channels, rows or pixels can be mistaken for each other."""
    rng = np.random.default_rng(7)
    return rng.integers(0, top, (HEIGHT, WIDTH, channels)).astype(dtype)


def smooth_image() -> np.ndarray:
    """Slow gradients, different in each channel, which JPEG keeps within a few levels."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    channels = [30 + 4 * rows, 220 - 3 * columns, 60 + rows + columns]
    return np.stack(channels, axis=2).astype(np.uint8)


def id_map(dtype: type = np.int32, top: int = 120) -> np.ndarray:
    return np.random.default_rng(3).integers(0, top, (HEIGHT, WIDTH)).astype(dtype)


def tag(code: int, *values: int, kind: int = 4) -> tuple[int, int, int, bytes]:
    """A tag of LONG (4) or SHORT (3) values."""
    return code, kind, len(values), struct.pack(f"<{len(values)}{'HI'[kind == 4]}", *values)


def build_tiff(
    height: int = 1,
    width: int = 1,
    data: bytes = b"\x05",
    next_page: int = 0,
    change: dict[int, tuple[int, int, int, bytes] | None] | None = None,
) -> bytes:
    """A one-strip, 8-bit grey TIFF, little-endian, with tags changed, added or (None) left out."""
    tags: dict[int, tuple[int, int, int, bytes] | None] = {
        256: tag(256, width),
        257: tag(257, height),
        258: tag(258, 8, kind=3),
        259: tag(259, 1, kind=3),
        262: tag(262, 1, kind=3),
        273: tag(273, 8),
        277: tag(277, 1, kind=3),
        278: tag(278, height),
        279: tag(279, len(data)),
    }
    tags.update(change or {})
    entries = [tags[code] for code in sorted(tags) if tags[code] is not None]
    directory_at = 8 + len(data)
    values_at = directory_at + 2 + 12 * len(entries) + 4
    directory, values = struct.pack("<H", len(entries)), b""
    for code, kind, count, value in entries:  # type: ignore[misc]
        if len(value) > 4:
            field = struct.pack("<I", values_at + len(values))
            values += value
        else:
            field = value.ljust(4, b"\0")
        directory += struct.pack("<HHI", code, kind, count) + field
    head = struct.pack("<2sHI", b"II", 42, directory_at)
    return head + data + directory + struct.pack("<I", next_page) + values


def jpeg_file(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH)) -> bytes:
    image = Image.fromarray(smooth_image()).resize(size[::-1])
    image.save(path, compression="jpeg")
    return path.read_bytes()


def assert_refused(path: Path, *words: str, read=read_image, **options) -> CellDataError:
    with pytest.raises(CellDataError) as caught:
        read(path, **options)
    for word in (str(path), *words):
        assert word in str(caught.value)
    return caught.value
