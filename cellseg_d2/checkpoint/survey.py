"""A look at what ``torch.save`` wrote, before torch reads it.

``torch.load`` with ``weights_only`` runs nothing, but a file of a few bytes can have it make text,
arrays and storage of any size, hash tuples for ever, or return a dict whose methods are numbers.
The program in the file is gone through here first, with stand-ins for tensors.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections import OrderedDict
from os import PathLike
from typing import Any, BinaryIO

from .unpickler import BoundedUnpickler, RefusedError, plain_members

_ZIP = b"PK\x03\x04"
# A file of the older format is magic number, version, system, content, and storages' names.
_PICKLES = 5
_TYPES = re.compile(
    r"torch\.(storage\.)?(\w+Storage|bool|bfloat16|half|float\w*|double|int\w*|uint8|long|short)"
)
_MADE = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor", "torch.device"}
_MADE |= {"torch._utils._rebuild_parameter", "torch.Size", "_codecs.encode", "builtins.complex"}


def survey(path: str | PathLike[str]) -> None:
    """Refuse a file that asks for more than tensors of its own content and plain containers.

    Args:
        path: of the file.

    Raises:
        RefusedError: for something outside that.
        Exception: whatever a file that is cut short or none makes its readers raise.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(_ZIP)) == _ZIP:
            programs: list[BinaryIO] = [io.BytesIO(_program(file))]
        else:
            file.seek(0)
            programs = [_Within(file, size)] * _PICKLES  # type: ignore[list-item]
        for program in programs:
            _Survey(program, size).load()


def _program(file: BinaryIO) -> bytes:
    """The pickle in a file of the newer format, a zip that compresses nothing."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise RefusedError("compressed storage")
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return archive.read(name)


class _Within:
    """A file that never makes room for more bytes than it has."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.readline = file.readline

    def read(self, length: int) -> bytes:
        return self._file.read(min(length, self._size))


class _StandIn:
    """What stands for a type, a tensor or storage, and does nothing."""

    def __call__(self, *_: Any) -> _StandIn:
        return self

    def __setstate__(self, _: Any) -> None:
        raise RefusedError("a change to a tensor")


class _Type:
    """What stands for a type, which is not called."""


class _Survey(BoundedUnpickler):
    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, encoding="utf-8")
        self._room = size
        self._storages: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if full == "collections.OrderedDict":
            return OrderedDict
        if full == "builtins.set":
            return lambda items=(): set(plain_members(items))
        if full in _MADE:
            return _StandIn()
        if _TYPES.fullmatch(full):
            return _Type()
        raise RefusedError(full.removeprefix("builtins."))

    def persistent_load(self, saved: Any) -> _StandIn:
        kind, _, key, _, count, *_ = saved
        if kind != "storage" or type(key) is not str or type(count) is not int:
            raise RefusedError("storage without a name or size")
        if key not in self._storages:
            self._storages.add(key)
            self._room -= count  # a number takes a byte at least
        if count < 0 or self._room < 0:
            raise RefusedError("storage larger than the file")
        return _StandIn()
