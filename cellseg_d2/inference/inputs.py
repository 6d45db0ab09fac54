"""Which images a user means by the paths given to ``predict.py``."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from ..data.layout import (
    IMAGE_FILE,
    is_like_class_file,
    list_names,
    list_tiffs,
    subfolders,
    tiffs_in,
)
from ..errors import CellDataError


def find_images(paths: Iterable[str | PathLike[str]]) -> list[Path]:
    """Return the images that files and folders stand for.

    A folder stands for its ``image.tif`` where it has one (an annotated image), else for the
    ``image.tif`` of each of its subfolders where they have one (a training set), else for all its
    TIFFs (a test set).

    Args:
        paths: files and folders.

    Raises:
        CellDataError: for a path that does not exist, a folder without images, or one of which
            some TIFFs would be left out.
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
    tiffs = tiffs_in(folder)
    if (folder / IMAGE_FILE).is_file():
        others = [path.name for path in tiffs if path.name != IMAGE_FILE]
        if others and not any(map(is_like_class_file, others)):
            raise _unclear(folder, f"{IMAGE_FILE}, and {list_names(others)}, no class files")
        return [folder / IMAGE_FILE]
    # Without hidden ones, which an interrupted run leaves of its label TIFFs.
    folders = subfolders(folder)
    nested = [path for path in folders if (path / IMAGE_FILE).is_file()]
    if not nested:
        below = [path.name for path in folders if tiffs and tiffs_in(path)]
        if below:
            raise _unclear(folder, f"TIFFs beside folders of TIFFs ({list_names(below)})")
        return list_tiffs(folder)
    if tiffs:
        names = list_names([path.name for path in tiffs])
        raise _unclear(folder, f"{names} beside folders of one image each")
    for path in folders:
        if path not in nested and (tiffs := tiffs_in(path)):
            raise _unclear(path, f"{list_names([t.name for t in tiffs])} without {IMAGE_FILE}")
    return [path / IMAGE_FILE for path in nested]


def _unclear(folder: Path, found: str) -> CellDataError:
    return CellDataError(
        folder,
        found,
        f"TIFFs, or folders of one image each with its {IMAGE_FILE}, not both",
        "move away what is not meant, or name the images and folders that are, one by one",
    )
