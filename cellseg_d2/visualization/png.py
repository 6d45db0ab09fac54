"""Pictures to disk."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..checkpoint.files import replace_file


def save_png(path: str | PathLike[str], picture: NDArray[np.uint8]) -> Path:
    """Writes a picture; the file appears complete or not at all.

    Args:
        path: the PNG; its folder is made where it is missing.
        picture: (H, W, 3) uint8 RGB.

    Returns:
        the path.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        Image.fromarray(picture).save(file, format="PNG")
    return path
