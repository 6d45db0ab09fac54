"""What is fuzzed: for each reader its files to start from, their changes, and the rule it keeps.

A target's `check` returns whether the file was read (True) or refused with the reader's named error
(False). Anything else that happens is a finding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from random import Random

from cellseg_d2.data import read_image, read_label_map
from cellseg_d2.data.tiff import read_size
from cellseg_d2.data.tiff_window import open_windows
from cellseg_d2.errors import CellDataError

from .tiff_files import mutate_tiff, real_seeds, tiff_seeds

REPOSITORY = Path(__file__).resolve().parents[2]
REAL_SAMPLE = REPOSITORY.parent / "shared" / "data" / "layout_sample"

# The reader's own limit, so that a file that states it asks for no more than some 100 MB.
MAX_PIXELS = 2_000_000


class Target(ABC):
    """One reader, or readers of one kind of file.

    Args:
        folder: to keep what the reader needs beside the file; empty.

    Attributes:
        seeds: sound files by name; the suffix of the name is that of the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seeds: dict[str, bytes] = {}

    def mutate(self, rng: Random) -> tuple[str, bytes]:
        """Return a seed's name and a changed copy of it."""
        name = rng.choice(list(self.seeds))
        return name, self.change(rng, name, self.seeds[name])

    def path(self, name: str) -> Path:
        """Where a copy of a seed is read from."""
        return self.folder / f"case{Path(name).suffix}"

    @abstractmethod
    def change(self, rng: Random, name: str, data: bytes) -> bytes:
        """Return a changed copy of a seed."""

    @abstractmethod
    def check(self, path: Path) -> bool:
        """Read a file; see the module."""


def refusal(error: BaseException) -> bool:
    """Return False: refused. That memory ran out is no refusal, whatever it is called."""
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause).lower()
        if isinstance(cause, MemoryError) or "allocate memory" in text:
            raise MemoryError(f"hidden in: {error}") from error
        cause = cause.__cause__ or cause.__context__
    return False


class TiffTarget(Target):
    """`read_image`, `read_label_map`, `read_size` and `open_windows`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        sources = {**tiff_seeds(), **real_seeds(REAL_SAMPLE)}
        self.seeds = {f"{name}.tif": data for name, data in sources.items()}
        self._small = [data for name, data in self.seeds.items() if not name.startswith("real")]

    def mutate(self, rng: Random) -> tuple[str, bytes]:
        names = list(self.seeds)
        name = rng.choice(names)
        if name.startswith("real") and rng.random() < 0.7:  # larger, and so slower
            name = rng.choice(names)
        return name, self.change(rng, name, self.seeds[name])

    def change(self, rng: Random, name: str, data: bytes) -> bytes:
        return mutate_tiff(rng, data, self._small)

    def check(self, path: Path) -> bool:
        size = None
        try:
            size = read_size(path)
        except CellDataError as error:
            refusal(error)
        return any([self._check_image(path, size), self._check_labels(path, size)])

    def _check_labels(self, path: Path, size: tuple[int, int] | None) -> bool:
        try:
            ids = read_label_map(path, max_pixels=MAX_PIXELS)
        except CellDataError as error:
            return refusal(error)
        assert ids.dtype == "int32" and ids.shape == size and ids.min() >= 0
        return True

    def _check_image(self, path: Path, size: tuple[int, int] | None) -> bool:
        image = None
        try:
            image = read_image(path, max_pixels=MAX_PIXELS)
            assert image.dtype == "uint8" and image.shape == (*(size or ()), 3)
        except CellDataError as error:
            refusal(error)
        try:
            with open_windows(path, max_pixels=MAX_PIXELS) as windows:
                height, width = min(windows.height, 40), min(windows.width, 50)
                for top, left in ((0, 0), (windows.height - height, windows.width - width)):
                    window = windows.read(top, left, height, width)
                    assert window.dtype == "uint8" and window.shape == (height, width, 3)
                    if image is not None:
                        expected = image[top : top + height, left : left + width]
                        assert (window == expected).all(), "another image by windows"
        except CellDataError as error:
            assert image is None, f"read as an image, refused by windows: {error}"
            return refusal(error)
        return True
