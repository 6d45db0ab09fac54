"""Which files on disk make up a data set, and what an image is called."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from ..errors import CellDataError

logger = logging.getLogger(__name__)

IMAGE_FILE = "image.tif"
TRAIN_FOLDER = "train"
TEST_FOLDER = "test_release"
ID_MAP_FILE = "test_image_name_to_ids.json"

_CLASS_FILE = re.compile(r"class([1-9][0-9]{0,8})\.tif")
# Names that a person would take for a class file. Ignoring one would drop a class without a word.
_LIKE_CLASS_FILE = re.compile(r"class[ _-]?[0-9]+\.tiff?", re.IGNORECASE)
_TIFF_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class ImageFolder:
    """One annotated image: a folder with ``image.tif`` and a label map for each class present.

    Attributes:
        name: the folder's name, which is the image's name.
        image_file: path of the image.
        label_files: {category: path of ``class{category + 1}.tif``}, ascending, present files only.
    """

    name: str
    image_file: Path
    label_files: dict[int, Path]


@dataclass
class RootLayout:
    """What ``scan_root`` found.

    Attributes:
        folders: the sound image folders, sorted by name.
        faults: one error for each file that cannot be used or is missing.
        ignored: folders that hold no TIFF at all.
    """

    folders: list[ImageFolder] = field(default_factory=list)
    faults: list[CellDataError] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)


def image_name(file_name: str | PathLike[str]) -> str:
    """Returns what an image is called in splits and outputs.

    Args:
        file_name: path of the image; it need not exist.

    Returns:
        The file's stem, or the folder's name where the file is ``image.tif``.
    """
    path = Path(file_name)
    if path.name == IMAGE_FILE:
        return Path(os.path.abspath(path)).parent.name
    return path.stem


def unique_image_names(file_names: Iterable[str | PathLike[str]]) -> list[str]:
    """Returns the images' names in the order given.

    Raises:
        CellDataError: two files have the same name, so that their outputs would overwrite
            each other.
    """
    owners: dict[str, str | PathLike[str]] = {}
    for file_name in file_names:
        name = image_name(file_name)
        if name in owners:
            raise CellDataError(
                file_name,
                f"a second image called {name!r} (the first is {os.fspath(owners[name])})",
                "a different name for each image",
                "rename one of them or use them in separate runs",
            )
        owners[name] = file_name
    return list(owners)


def scan_root(root: str | PathLike[str], num_classes: int = 4) -> RootLayout:
    """Finds the annotated images under a root, without opening any.

    The root holds ``train/``, or itself holds image folders, or is one image folder. Hidden files
    and folders, ``__MACOSX`` and files of other kinds are ignored; folders without any TIFF are
    ignored and listed. TIFFs beside the image folders, and image folders in a folder of their own,
    are faults, since they may be meant; image folders beside ``train/`` are logged.

    Args:
        root: the data set's folder.
        num_classes: class files run from ``class1.tif`` to ``class{num_classes}.tif``.

    Returns:
        The image folders sorted by name, and every fault found.

    Raises:
        CellDataError: ``root`` is not a readable folder or holds no image folder at all.
    """
    root = Path(root)
    if not root.is_dir():
        raise CellDataError(
            root,
            "a file" if root.exists() else "nothing",
            "a folder with train/ or with image folders",
            "check the path of the data set",
        )
    layout = RootLayout()
    others = [folder for folder in subfolders(root) if folder.name != TEST_FOLDER]
    if (root / TRAIN_FOLDER).is_dir():
        parent = root / TRAIN_FOLDER
        candidates = subfolders(parent)
        # Folders that cannot be read may lie here too: they are no part of the data set.
        beside = [
            folder for folder in others if folder != parent and os.path.isfile(folder / IMAGE_FILE)
        ]
        if beside:
            names = list_names([folder.name for folder in beside])
            logger.warning("%s: not part of the data set, beside train/: %s", root, names)
    elif _is_image_folder(root):
        parent, candidates = None, [root]
    else:
        parent, candidates = root, others
    for folder in candidates:
        _sort_folder(folder, num_classes, layout)
    if parent is not None and (layout.folders or layout.faults):
        _add_misplaced(parent, layout)
    if not layout.folders and not layout.faults:
        raise CellDataError(
            root,
            "no image folder",
            f"{TRAIN_FOLDER}/<name>/{IMAGE_FILE} or <name>/{IMAGE_FILE} with class1.tif, …",
            "point to the folder above the image folders",
        )
    return layout


def list_tiffs(folder: str | PathLike[str]) -> list[Path]:
    """Returns the TIFFs directly in a folder, sorted by name; hidden files are left out.

    Raises:
        CellDataError: the folder cannot be read or holds no TIFF.
    """
    files = tiffs_in(folder)
    if not files:
        raise CellDataError(folder, "no .tif file", "a folder of images", "check the folder")
    return files


def tiffs_in(folder: str | PathLike[str]) -> list[Path]:
    """Returns what ``list_tiffs`` does, and nothing where there is none.

    Raises:
        CellDataError: the folder cannot be read.
    """
    folder = Path(folder)
    return [folder / name for name in _names(folder) if _is_tiff_name(name)]


def is_like_class_file(name: str) -> bool:
    """Returns whether a person would take a file of this name for a class file."""
    return _LIKE_CLASS_FILE.fullmatch(name) is not None


def list_names(names: list[str], limit: int = 5) -> str:
    """Returns the first names, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _names(folder: Path) -> list[str]:
    """The sorted names in a folder, without hidden ones."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise CellDataError(
            folder,
            f"a folder that cannot be listed ({error.strerror})",
            "a readable folder",
            "check that it exists and its permissions",
        ) from error


def subfolders(folder: Path) -> list[Path]:
    """Returns the folders directly in a folder, sorted by name, without hidden ones.

    Raises:
        CellDataError: the folder cannot be read.
    """
    paths = [folder / name for name in _names(folder) if name != "__MACOSX"]
    return [path for path in paths if path.is_dir()]


def _is_tiff_name(name: str) -> bool:
    return name.lower().endswith(_TIFF_SUFFIXES)


def _is_image_folder(folder: Path) -> bool:
    return any(name == IMAGE_FILE or is_like_class_file(name) for name in _names(folder))


def _add_misplaced(parent: Path, layout: RootLayout) -> None:
    """Enters as faults the images that are beside image folders, or one level too deep."""
    for folder in layout.ignored.copy():
        try:
            nested = [below for below in subfolders(folder) if _is_image_folder(below)]
        except CellDataError as fault:
            layout.faults.append(fault)
            continue
        if nested:
            layout.ignored.remove(folder)
            layout.faults.append(
                CellDataError(
                    folder,
                    f"image folders one level too deep ({list_names([p.name for p in nested])})",
                    "all image folders beside each other",
                    "move these to the others, or out of the data set",
                )
            )
    loose = tiffs_in(parent)
    if loose:
        layout.faults.append(
            CellDataError(
                parent,
                f"{list_names([path.name for path in loose])} beside image folders",
                f"each image as {IMAGE_FILE} in a folder of its own",
                "move these files into such folders, or out of the data set",
            )
        )


def _sort_folder(folder: Path, num_classes: int, layout: RootLayout) -> None:
    """Enters one folder in the layout: as an image, as a fault for each bad file, or as ignored."""
    try:
        tiffs = [name for name in _names(folder) if _is_tiff_name(name)]
    except CellDataError as fault:
        layout.faults.append(fault)
        return
    if not tiffs:
        layout.ignored.append(folder)
        return
    faults: list[CellDataError] = []
    if IMAGE_FILE not in tiffs:
        faults.append(
            CellDataError(
                folder,
                f"{list_names(tiffs)} without {IMAGE_FILE}",
                f"a file called exactly {IMAGE_FILE}",
                "add or rename the image, or move the folder out of the data set",
            )
        )
    label_files: dict[int, Path] = {}
    for name in tiffs:
        match = _CLASS_FILE.fullmatch(name)
        if match and int(match[1]) <= num_classes:
            label_files[int(match[1]) - 1] = folder / name
        elif match or is_like_class_file(name):
            faults.append(
                CellDataError(
                    folder / name,
                    f"a class file called {name}",
                    f"class1.tif … class{num_classes}.tif" if num_classes > 1 else "class1.tif",
                    "rename or remove it, or set the number of classes to match the data",
                )
            )
    image_file = folder / IMAGE_FILE
    for path in (image_file, *label_files.values()):
        if not path.is_file() and path.name in tiffs:
            faults.append(
                CellDataError(
                    path,
                    "a folder" if path.is_dir() else "a broken link or a special file",
                    "a TIFF file",
                    "replace it with the file itself",
                )
            )
    if faults:
        layout.faults.extend(faults)
        return
    name = Path(os.path.abspath(folder)).name
    layout.folders.append(ImageFolder(name, image_file, dict(sorted(label_files.items()))))
