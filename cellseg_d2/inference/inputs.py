"""Which images a user means by the paths given to ``predict.py``."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from ..data.layout import IMAGE_FILE, list_tiffs
from ..errors import CellDataError


def find_images(paths: Iterable[str | PathLike[str]]) -> list[Path]:
    """Return the images that files and folders stand for.

    A folder stands for its ``image.tif`` where it has one (an annotated image), else for the
    ``image.tif`` of each of its subfolders where they have one (a training set), else for all its
    TIFFs (a test set).

    Args:
        paths: files and folders.

    Raises:
        CellDataError: for a path that does not exist, or a folder without images.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            images += _in_folder(path)
        elif path.is_file():
            images.append(path)
        else:
            raise CellDataError(path, "nothing", "a TIFF or a folder of TIFFs", "check the path")
    return images


def _in_folder(folder: Path) -> list[Path]:
    if (folder / IMAGE_FILE).is_file():
        return [folder / IMAGE_FILE]
    # Hidden folders are what an interrupted run leaves of its label TIFFs.
    nested = sorted(p for p in folder.glob(f"*/{IMAGE_FILE}") if p.parent.name[0] != ".")
    return nested or list_tiffs(folder)
