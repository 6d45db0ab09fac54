"""Opening of a submission, a JSON file or a zip of one, that may come from anywhere."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import IO, TextIO

from .submission import JSON_NAME

# Of JSON text. 101 images with 1,000 cells each make about 25 MB.
MAX_BYTES = 1 << 30
# Run lengths shrink to about a half; text that shrinks to a hundredth is padding.
_MAX_RATIO = 100
_RATIO_MATTERS_ABOVE = 10 << 20
_ZIP_MAGIC = b"PK\x03\x04"
_ENCRYPTED = 1


class SubmissionFileError(ValueError):
    """A file that cannot be read as JSON text, or a zip without a usable `test-results.json`."""


@dataclass
class OpenSubmission:
    """A submission's text.

    Attributes:
        stream: the JSON text; reading it can raise `UnicodeDecodeError`, and from a damaged zip
            `SubmissionFileError` once the context ends.
        faults: what is wrong with the zip although it can be read.
        warnings: what is unusual about the zip.
    """

    stream: TextIO
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@contextmanager
def open_submission(path: str | PathLike[str]) -> Iterator[OpenSubmission]:
    """Opens the text of a `.json` or of the one JSON member of a `.zip`, to be read as a stream.

    Nothing is unpacked to disk, and no other member is read.

    Args:
        path: the file.

    Yields:
        the open text.

    Raises:
        SubmissionFileError: the zip is damaged, encrypted, or suspiciously dense, holds no
            `test-results.json`, or the text is over `MAX_BYTES`.
        OSError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        is_zip = path.suffix.lower() == ".zip" or file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
        file.seek(0)
        if is_zip:
            with _open_zip(file) as opened:
                yield opened
            return
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SubmissionFileError(f"{size} bytes are over the limit of {MAX_BYTES}")
        yield OpenSubmission(_text(file))


@contextmanager
def _open_zip(file: IO[bytes]) -> Iterator[OpenSubmission]:
    try:
        with zipfile.ZipFile(file) as archive:
            member, faults, warnings = _choose_member(archive.infolist())
            with archive.open(member) as content:
                yield OpenSubmission(_text(content), faults, warnings)
    # What zipfile and its decompressors raise for damage and for what they do not support.
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        OSError,
    ) as error:
        reason = str(error) or type(error).__name__
        raise SubmissionFileError(f"the zip is damaged ({reason})") from error


def _choose_member(
    members: list[zipfile.ZipInfo],
) -> tuple[zipfile.ZipInfo, list[str], list[str]]:
    """The one member to read, with faults and warnings about its name and its company."""
    files = [info for info in members if not info.filename.endswith("/")]
    named = [info for info in files if info.filename == JSON_NAME]
    faults, warnings = [], []
    if len(named) > 1:
        raise SubmissionFileError(f"{len(named)} files of the zip are called {JSON_NAME}")
    if not named:
        named = [info for info in files if info.filename.endswith(".json")]
        if len(named) != 1:
            raise SubmissionFileError(f"no {JSON_NAME} among the {len(files)} files of the zip")
        faults.append(f"the zip holds {named[0].filename[:80]!a}, not {JSON_NAME}")
    if len(files) > 1:
        warnings.append(f"the zip holds {len(files) - 1} other files")
    (member,) = named
    if member.flag_bits & _ENCRYPTED:
        raise SubmissionFileError("the zip is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # LZMA's own header says how much memory its decoder takes.
        raise SubmissionFileError("the zip is neither stored nor deflated")
    if member.file_size > MAX_BYTES:
        raise SubmissionFileError(f"{member.file_size} bytes unpacked, over {MAX_BYTES}")
    if (
        member.file_size > _RATIO_MATTERS_ABOVE
        and member.file_size > _MAX_RATIO * member.compress_size
    ):
        raise SubmissionFileError(
            f"{member.compress_size} bytes would unpack to {member.file_size}: no usual JSON"
        )
    return member, faults, warnings


def _text(file: IO[bytes]) -> TextIO:
    return io.TextIOWrapper(file, encoding="utf-8", errors="strict", newline="\n")
