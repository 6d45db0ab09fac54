"""A synthetic data set on disk, in the layout of the released one."""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import CellDataError
from .arrays import Ids
from .cells import KINDS
from .files import write_image, write_json, write_label_map
from .image import CLASS_WEIGHTS, check_arguments, make_image

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
PARAMETER_FILE = "synthetic.json"
ID_MAP_FILE = "test_image_name_to_ids.json"

_SPLIT_CODES = {"train": 0, "test": 1}
_PARTIAL_FOLDER = ".partial"


@dataclass(frozen=True)
class SyntheticParameters:
    """What a synthetic data set consists of; equal parameters give equal bytes.

    Args:
        train: number of training images.
        test: number of test images.
        size: smallest and largest height and width in pixels, drawn apart from each other.
        cells: fewest and most cells to place in an image.
        scale: cell size, as in `make_image`.
        seed: of all randomness, not negative.
        empty: the first so many training images hold no cell, and so have no class file.
        class_weights: four relative frequencies. An image's own vary around them, and one image in
            five lacks a class.
        overlap: as in `make_image`.
        test_labels: whether the masks of the test images are written too.

    Raises:
        ValueError: a value is out of its range.
    """

    train: int = 48
    test: int = 8
    size: tuple[int, int] = (192, 256)
    cells: tuple[int, int] = (10, 35)
    scale: float = 1.0
    seed: int = 0
    empty: int = 0
    class_weights: tuple[float, float, float, float] = CLASS_WEIGHTS
    overlap: float = 0.2
    test_labels: bool = False

    def __post_init__(self) -> None:
        if min(self.train, self.test, self.seed) < 0:
            raise ValueError("train, test and seed must not be negative")
        if not 0 <= self.empty <= self.train:
            raise ValueError(f"empty {self.empty}: must be from 0 to train, {self.train}")
        for name, (low, high) in (("size", self.size), ("cells", self.cells)):
            if low > high:
                raise ValueError(f"{name} {low} {high}: the first must not be above the second")
        check_arguments(self.size, self.cells[0], self.class_weights, self.scale, self.overlap)


def write_dataset(
    output: str | os.PathLike[str], parameters: SyntheticParameters | None = None
) -> int:
    """Write a data set in the released layout, or complete one that was interrupted.

    ``output`` then holds ``train/<uuid>/image.tif`` with ``class1.tif`` to ``class4.tif``, each
    absent where its class is; ``test_release/<uuid>.tif``; ``test_image_name_to_ids.json``; with
    ``test_labels`` also ``test_ground_truth/<uuid>/classK.tif`` (an empty folder where the image
    has no cell); and ``synthetic.json`` with the parameters. Images are uint8 RGBA, LZW, with red
    and blue swapped; masks are float64, uncompressed. An image appears under its name only when
    complete, and depends on the seed, its split and its index alone.

    Args:
        output: the folder, new, empty, or written before with the same parameters.
        parameters: what to write; the defaults suit a demo.

    Returns:
        How many images were written: 0 where all were there already.

    Raises:
        CellDataError: ``output`` is a file, or holds something else.
    """
    parameters = parameters or SyntheticParameters()
    root = Path(output)
    _claim_folder(root, parameters)
    partial = root / _PARTIAL_FOLDER
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    written = 0
    names = []
    for split, count in (("train", parameters.train), ("test", parameters.test)):
        for index in range(count):
            rng = np.random.default_rng([parameters.seed, _SPLIT_CODES[split], index])
            name = str(uuid.UUID(bytes=rng.bytes(16), version=4))
            height, width = (int(n) for n in rng.integers(*parameters.size, 2, endpoint=True))
            if split == "test":
                file_name = f"{name}.tif"
                names.append(
                    {"file_name": file_name, "height": height, "id": index + 1, "width": width}
                )
            targets = _targets(root, split, name, parameters.test_labels)
            if all(target.exists() for target in targets):
                continue
            empty = split == "train" and index < parameters.empty
            image, label_maps = _draw_sample(rng, (height, width), parameters, empty)
            _write_sample(partial, targets, image, label_maps)
            written += 1
    if names:
        write_json(partial, root / ID_MAP_FILE, names)
    partial.rmdir()
    logger.info("%s: %d images written", root, written)
    return written


def _claim_folder(root: Path, parameters: SyntheticParameters) -> None:
    """Make the folder and note the parameters in it, or check that they are those noted."""
    # Through JSON and back, so that tuples compare equal to the lists that are read.
    noted = json.loads(json.dumps({"version": FORMAT_VERSION, **asdict(parameters)}))
    parameter_file = root / PARAMETER_FILE
    advice = "choose another output folder, or remove this one"
    if root.exists() and not root.is_dir():
        raise CellDataError(root, "a file", "a folder", advice)
    root.mkdir(parents=True, exist_ok=True)
    if parameter_file.exists():
        try:
            there = json.loads(parameter_file.read_text(encoding="utf-8"))
        except ValueError:
            there = None
        if not isinstance(there, dict):
            raise CellDataError(parameter_file, "a damaged file", "JSON parameters", advice)
        differing = sorted(k for k in noted | there if noted.get(k) != there.get(k))
        if differing:
            raise CellDataError(
                root,
                "a synthetic data set with "
                + ", ".join(f"{key} {there.get(key)}" for key in differing),
                ", ".join(f"{key} {noted.get(key)}" for key in differing),
                advice,
            )
    elif any(entry.name != _PARTIAL_FOLDER for entry in root.iterdir()):
        raise CellDataError(root, "other files", "an empty folder", advice)
    else:
        partial = root / _PARTIAL_FOLDER
        partial.mkdir(exist_ok=True)
        write_json(partial, parameter_file, noted)


def _targets(root: Path, split: str, name: str, test_labels: bool) -> list[Path]:
    """Name the places of a sample's parts: one folder with all of it, or labels and image apart."""
    if split == "train":
        return [root / "train" / name]
    image = root / "test_release" / f"{name}.tif"
    return [root / "test_ground_truth" / name, image] if test_labels else [image]


def _draw_sample(
    rng: np.random.Generator, size: tuple[int, int], parameters: SyntheticParameters, empty: bool
) -> tuple[npt.NDArray[np.uint8], Ids]:
    num_cells = 0 if empty else int(rng.integers(*parameters.cells, endpoint=True))
    weights = np.asarray(parameters.class_weights) * np.exp(0.3 * rng.standard_normal(len(KINDS)))
    absent = int(rng.integers(len(KINDS)))
    if rng.random() < 0.2 and np.count_nonzero(weights) > 1:
        kept = weights.copy()
        kept[absent] = 0
        weights = kept
    return make_image(
        rng,
        size,
        num_cells,
        class_weights=tuple(weights),
        scale=parameters.scale,
        overlap=parameters.overlap,
    )


def _write_sample(
    partial: Path, targets: list[Path], image: npt.NDArray[np.uint8], label_maps: Ids
) -> None:
    """Write under temporary names, then rename, so that what has its name is whole."""
    for target in targets:
        target.parent.mkdir(exist_ok=True)
        temporary = partial / target.name
        if target.suffix == ".tif":
            write_image(temporary, image)
        else:
            temporary.mkdir()
            for number, label_map in enumerate(label_maps, 1):
                if label_map.any():
                    write_label_map(temporary / f"class{number}.tif", label_map)
            if len(targets) == 1:
                write_image(temporary / "image.tif", image)
        if not target.exists():
            os.replace(temporary, target)
        elif temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink()
