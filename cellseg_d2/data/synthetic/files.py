"""The files of a data set, stored as the released ones are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from .arrays import Ids

# Rows in a strip, as released: the files come in many short strips, which a reader must cope with.
_IMAGE_STRIP = 4
_LABEL_STRIP = 2


def write_image(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Write a uint8 RGB (H, W, 3) image as RGBA with red and blue swapped."""
    swapped = np.full((*image.shape[:2], 4), 255, dtype=np.uint8)
    swapped[..., :3] = image[..., ::-1]
    tifffile.imwrite(
        path,
        swapped,
        compression="lzw",
        predictor=True,
        rowsperstrip=_IMAGE_STRIP,
        photometric="rgb",
        extrasamples=["unassalpha"],
        metadata=None,
    )


def write_label_map(path: Path, label_map: Ids) -> None:
    """Write one class's int32 (H, W) ids as float64, uncompressed."""
    tifffile.imwrite(
        path,
        label_map.astype(np.float64),
        compression=None,
        rowsperstrip=_LABEL_STRIP,
        photometric="minisblack",
        metadata=None,
    )


def write_json(partial: Path, path: Path, content: Any) -> None:
    """Write JSON under a temporary name in the folder ``partial``, then rename it to ``path``."""
    temporary = partial / path.name
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
