"""Answers that are finished, so that an interrupted run goes on with the images that are missing.

Each image's entries of the submission are a file in ``OUTPUT/parts``, written after all else that
the image gives and whole or not at all: where it stands, the image is done. Its first line says
what it is the answer to; a run takes it only where that is its own question. When the submission is
complete, the folder is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from detectron2.config import CfgNode

from ..checkpoint.files import replace_file
from ..checkpoint.sources import check_weights
from ..data.layout import image_name
from ..errors import CellDataError

PARTS_FOLDER = "parts"


def run_fingerprint(cfg: CfgNode, weights: Sequence[str], **options: Any) -> str:
    """Return a text that is the same for runs that give the same answers.

    Args:
        cfg: the config; where its weights lie and where it writes to does not count.
        weights: paths of the checkpoints, whose content counts.
        **options: what else the outputs depend on; can be said in JSON.

    Returns:
        64 hexadecimal digits.

    Raises:
        CellDataError: for weights that are not there.
        OSError: for weights that cannot be read.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = cfg.MODEL.WEIGHTS = ""
    digests = []
    for path in weights:
        check_weights(path, trained=True)
        digests.append(_digest(path) if os.path.isfile(path) else path)
    text = json.dumps([cfg.dump(), digests, options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Parts:
    """The finished answers of one run.

    Args:
        output_dir: the run's folder.
        fingerprint: of the run, see ``run_fingerprint``.
    """

    def __init__(self, output_dir: str | PathLike[str], fingerprint: str) -> None:
        self.folder = Path(output_dir) / PARTS_FOLDER
        self._fingerprint = fingerprint

    def is_done(self, item: dict[str, Any]) -> bool:
        """Return whether an image's answer is there, from this image file and such a run.

        Args:
            item: an image's dict.
        """
        try:
            with open(self._path(item), "rb") as file:
                return bool(json.loads(file.readline()) == self._question(item))
        except (FileNotFoundError, ValueError):  # not there, no part, or an image that is gone
            return False

    @contextmanager
    def open(self, item: dict[str, Any]) -> Iterator[PartWriter]:
        """Open an image's part, which is there once the context is left without an error.

        Args:
            item: the image's dict.

        Raises:
            CellDataError: the image is no longer there.
        """
        question = self._question(item)  # of the file as it is before it is read
        # The answer to another question ends here: its other files are about to be replaced.
        self._path(item).unlink(missing_ok=True)
        with replace_file(self._path(item)) as file:
            file.write(json.dumps(question).encode("ascii") + b"\n")
            yield PartWriter(file)

    def entries(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield an image's entries of the submission.

        Args:
            item: the image's dict.

        Raises:
            CellDataError: the answer is not there.
        """
        path = self._path(item)
        if not self.is_done(item):
            raise CellDataError(
                path,
                "no answer to this image as it is now",
                "the answers to all images, from all processes",
                "leave the images alone while the run goes on, and give several machines one "
                "output folder on a shared disk; then run the command again",
            )
        with open(path, "rb") as file:
            file.readline()
            for line in file:
                yield {"image_id": item["image_id"], **json.loads(line)}

    def remove(self) -> None:
        """Remove all answers: the submission holds them."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _path(self, item: dict[str, Any]) -> Path:
        return self.folder / f"{image_name(item['file_name'])}.jsonl"

    def _question(self, item: dict[str, Any]) -> dict[str, Any]:
        # Not the image's path: machines that share a disk may have it at different places.
        try:
            status = os.stat(item["file_name"])
        except OSError as error:
            raise CellDataError(
                item["file_name"],
                f"nothing that can be read ({error.strerror})",
                "an image, as when the run began",
                "leave the images alone while the run goes on; then run the command again",
            ) from error
        return {
            "run": self._fingerprint,
            "bytes": status.st_size,
            "modified": status.st_mtime_ns,
        }


class PartWriter:
    """Write one image's entries as they come.

    Args:
        file: open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Write some entries, without their image ids: those follow from all images together.

        Raises:
            ValueError: an entry holds NaN or an infinity.
        """
        for entry in entries:
            rest = {key: value for key, value in entry.items() if key != "image_id"}
            self._file.write(json.dumps(rest, allow_nan=False).encode("ascii") + b"\n")


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
