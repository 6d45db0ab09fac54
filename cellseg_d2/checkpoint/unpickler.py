"""Pickles of arrays, read so that nothing in them can run.

Detectron2's model zoo ships ``.pkl`` files. A pickle is a program: loading one with ``pickle.load``
runs whatever its author, or whoever changed it since, put there. The machine here is CPython's own
in Python, not in C (whose memo a four-byte operand can make 64 GB large), with a closed list of
what a file may name: NumPy's ways to write an array down, for NumPy 1 and 2, and plain containers.

NumPy's own functions are not called. A ``dtype`` from a file can claim that raw bytes are object
pointers, and ``ndarray`` can be asked for any size, so both have stand-ins that check first.
"""

from __future__ import annotations

import io
import pickle
import reprlib
import struct
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import CellDataError

_NUMBERS = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8".split())
_ORDERS = ("C", "F")
# Of a tuple with all that is in it; a hundred times the shape of an array and its surroundings.
_MAX_TUPLE = 10_000


def load_arrays(path: str | PathLike[str]) -> Any:
    """Load a pickle of numeric arrays, numbers, strings and plain containers.

    Strings of Python 2 are read as Latin-1, as Detectron2 does.

    Args:
        path: of the file; it is read into memory whole.

    Returns:
        What was pickled.

    Raises:
        CellDataError: for a file that names anything else, or that is cut short or no pickle.
    """
    content = Path(path).read_bytes()
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except RefusedError as error:
        raise CellDataError(
            path,
            f"a pickle that asks for {error}",
            "numeric arrays and plain containers only",
            "do not use the file: to load it could run a program; get it from its source again",
        ) from error
    except Exception as error:  # what a broken program makes its machine raise is no short list
        raise CellDataError(
            path,
            f"no readable pickle ({type(error).__name__}: {error})",
            "a pickle of arrays",
            "get the file again; it may be cut short",
        ) from error


class RefusedError(pickle.UnpicklingError):
    """Something outside the closed list; the message is what it is."""


class _Admitted:
    """What a file may call, but neither change nor take apart."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise RefusedError("a change to a function")


class _NumberType:
    """Stands in for ``numpy.dtype``: a number's kind and size, then its byte order."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _NUMBERS:
            raise RefusedError(f"an array of {reprlib.repr(code)}")
        self._code = code
        self._order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, compound = state[1], state[2:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in compound):
            raise RefusedError("an array of structures")
        self._order = order

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self._order + self._code)


class _Array(np.ndarray[Any, Any]):
    """An array that is filled by its state, as NumPy pickles one."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *version, shape, number, fortran, data = state
        super().__setstate__((*version, shape, number.dtype, fortran, data))


def _reconstruct(kind: Any, shape: tuple[int, ...], _: Any) -> _Array:
    if kind is not _NDARRAY or shape != (0,):
        raise RefusedError(f"an array of shape {reprlib.repr(shape)} without its content")
    return np.ndarray.__new__(_Array, (0,), np.uint8)


def _from_buffer(
    data: bytes | bytearray, number: _NumberType, shape: tuple[int, ...], order: str
) -> np.ndarray[Any, Any]:
    # Types first: a product of texts and lists would be as long as the file wants it.
    sizes = type(shape) is tuple and all(type(size) is int for size in shape)
    if not sizes or order not in _ORDERS or len(data) != prod(shape) * number.dtype.itemsize:
        raise ValueError(f"{len(data)} bytes for an array of shape {reprlib.repr(shape)}")
    # In the machine's byte order, as NumPy's own way gives arrays back and torch wants them.
    flat = np.frombuffer(data, number.dtype).astype(number.dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _scalar(number: _NumberType, data: bytes | str) -> Any:
    content = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(content, number.dtype)[0]


def _encode(text: str, encoding: str) -> bytes:
    # How protocols below 3 write bytes; other encodings would let the file choose a codec.
    if encoding != "latin1":
        raise RefusedError(f"the codec {reprlib.repr(encoding)}")
    return text.encode("latin1")


_NDARRAY = _Admitted(lambda *_: _refuse("an array without its content"))
_ADMITTED: dict[str, _Admitted] = {
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": _Admitted(_NumberType),
    "numpy.core.multiarray._reconstruct": _Admitted(_reconstruct),
    "numpy._core.multiarray._reconstruct": _Admitted(_reconstruct),
    "numpy.core.multiarray.scalar": _Admitted(_scalar),
    "numpy._core.multiarray.scalar": _Admitted(_scalar),
    "numpy.core.numeric._frombuffer": _Admitted(_from_buffer),
    "numpy._core.numeric._frombuffer": _Admitted(_from_buffer),
    "_codecs.encode": _Admitted(_encode),
    # Empty bytes below protocol 3; with an argument it would make as many as a file asks for.
    "builtins.bytes": _Admitted(lambda: b""),
    "__builtin__.bytes": _Admitted(lambda: b""),
    "collections.OrderedDict": _Admitted(OrderedDict),
    "builtins.set": _Admitted(lambda items=(): set(plain_members(items))),
    "builtins.frozenset": _Admitted(lambda items=(): frozenset(plain_members(items))),
    "__builtin__.set": _Admitted(lambda items=(): set(plain_members(items))),
    "__builtin__.frozenset": _Admitted(lambda items=(): frozenset(plain_members(items))),
}


def _refuse(what: str) -> None:
    raise RefusedError(what)


def plain_members(items: Any) -> list[Any]:
    """Check that nothing of what goes into a set holds other things.

    Args:
        items: a list or tuple.
    """
    if not isinstance(items, list | tuple):
        raise RefusedError(f"a set of a {type(items).__name__}")
    for item in items:
        if isinstance(item, tuple | frozenset):
            raise RefusedError("a set of tuples or sets")
    return list(items)


class BoundedUnpickler(pickle._Unpickler):
    """The machine, for programs that are small and ask for much.

    A tuple that holds another one twice, which holds another one twice, is short to write and is
    never done hashing; here the parts of each tuple are counted when it is made.
    """

    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # The tuples are kept beside their sizes, so that no other comes to have their id.
        self._sizes: dict[int, tuple[tuple[Any, ...], int]] = {}

    def get_extension(self, code: int) -> None:
        # The registry of extensions caches what it finds, past find_class.
        raise RefusedError(f"the extension {code}")

    def load_bytearray8(self) -> None:
        # Upstream's makes the whole array before it knows that there are bytes to fill it.
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def load_tuple(self) -> None:
        self._append_tuple(tuple(self.pop_mark()))

    def load_tuple1(self) -> None:
        self._append_tuple((self.stack.pop(),))

    def load_tuple2(self) -> None:
        self._append_tuple((self.stack.pop(-2), self.stack.pop()))

    def load_tuple3(self) -> None:
        self._append_tuple((self.stack.pop(-3), self.stack.pop(-2), self.stack.pop()))

    def _append_tuple(self, made: tuple[Any, ...]) -> None:
        inner = [self._sizes[id(part)][1] for part in made if type(part) is tuple and part]
        size = len(made) + sum(inner)
        if inner and size > _MAX_TUPLE:
            raise RefusedError(f"tuples in tuples of over {_MAX_TUPLE} parts")
        if made:
            self._sizes[id(made)] = made, size
        self.append(made)

    def load_frozenset(self) -> None:
        items = self.pop_mark()  # which puts another stack, and so another append, in place
        self.append(frozenset(plain_members(items)))

    def load_additems(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(plain_members(items))

    def load_build(self) -> None:
        # Layers keep their versions in `_metadata`; other attributes would hide a dict's methods.
        if isinstance(self.stack[-2], dict):
            state = self.stack[-1]
            if not isinstance(state, dict) or state.keys() - {"_metadata"}:
                raise RefusedError("a change to a dict's methods")
        super().load_build()  # type: ignore[misc]

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.TUPLE[0]: load_tuple,
        pickle.TUPLE1[0]: load_tuple1,
        pickle.TUPLE2[0]: load_tuple2,
        pickle.TUPLE3[0]: load_tuple3,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.ADDITEMS[0]: load_additems,
        pickle.BUILD[0]: load_build,
    }


class _ArrayUnpickler(BoundedUnpickler):
    """The machine with NumPy's list; see the module."""

    def find_class(self, module: str, name: str) -> _Admitted:
        try:
            return _ADMITTED[f"{module}.{name}"]
        except KeyError:
            raise RefusedError(f"{module}.{name}") from None
