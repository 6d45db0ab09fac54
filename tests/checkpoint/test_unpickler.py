"""Pickles of arrays are read as pickle reads them; nothing in a file runs."""

from __future__ import annotations

import builtins
import os
import pickle
import pickletools
import struct
import subprocess
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_d2 import CellDataError
from cellseg_d2.checkpoint import load_arrays

ARRAYS = {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "strided": np.arange(12, dtype=np.int64)[::2],
    "big-endian": np.arange(3, dtype=">i4"),
    "half": np.ones((1, 2, 1), np.float16),
    "bool": np.array([True, False]),
    "bytes": np.arange(4, dtype=np.uint8),
    "zero": np.zeros((0, 5), np.float32),
    "single": np.array(3.5),
}
PLAIN = {
    "__author__": "someone",
    "names": ["a", ("b", 2.5, None, True)],
    "ordered": OrderedDict(z=1, a=2),
    "set": {1, 2},
    "frozen": frozenset([3]),
    "raw": b"\x00\xff",
    "scalar": np.float32(1.5),
}


class Call:
    """Pickles to a call of any function with any arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


class State:
    """Pickles to a call, and a state that is given to what it returned."""

    def __init__(self, function: Any, arguments: tuple, state: Any) -> None:
        self.parts = function, arguments, state

    def __reduce__(self) -> tuple:
        return self.parts


def dump(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_containers_come_back(tmp_path: Path, protocol: int) -> None:
    content = {"model": ARRAYS, **PLAIN}
    found = load_arrays(dump(tmp_path / "a.pkl", content, protocol))
    assert {k: v for k, v in found.items() if k != "model"} == PLAIN
    assert isinstance(found["ordered"], OrderedDict) and found["scalar"].dtype == np.float32
    for name, array in ARRAYS.items():
        given = found["model"][name]
        assert isinstance(given, np.ndarray)
        assert given.dtype == array.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(given, array)
        native = np.array(array, given.dtype)
        assert torch.equal(torch.from_numpy(given), torch.from_numpy(native)), name


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_module_names_of_numpy_1_and_2(tmp_path: Path, module: str) -> None:
    data = pickle.dumps({"model": {"w": np.ones(3, np.float32)}, "s": np.int64(4)}, protocol=2)
    here = np.array(0).__reduce__()[0].__module__.removesuffix(".multiarray").encode()
    path = tmp_path / "a.pkl"
    path.write_bytes(data.replace(here + b".multiarray", module.encode() + b".multiarray"))
    found = load_arrays(path)
    assert found["model"]["w"].tolist() == [1, 1, 1] and found["s"] == 4


def test_strings_and_arrays_of_python_2(tmp_path: Path) -> None:
    # What cPickle of Python 2 writes at protocol 2 for {"conv1_w": numpy.float32([1.5, -2])}: the
    # key and the content are byte strings.
    content = struct.pack("<2f", 1.5, -2.0)
    data = (
        b"\x80\x02}q\x01U\x07conv1_wq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03"
        b"cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02\x85cnumpy\ndtype\nq\x06"
        b"U\x02f4K\x00K\x01\x87Rq\x07(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
        + content
        + b"tbs."
    )
    expected = pickle.loads(data, encoding="latin1")
    (tmp_path / "a.pkl").write_bytes(data)
    found = load_arrays(tmp_path / "a.pkl")
    assert found.keys() == expected.keys() == {"conv1_w"}
    assert found["conv1_w"].tolist() == expected["conv1_w"].tolist() == [1.5, -2.0]


def attacks(marker: Path) -> dict[str, tuple[Any, str]]:
    """By name: what a file could hold, and what the refusal must name."""
    shell = f"touch {marker}"
    return {
        "system": (Call(os.system, shell), f"{os.system.__module__}.system"),
        "eval": (Call(eval, f"open({str(marker)!r}, 'w')"), ".eval"),
        "open": (Call(open, str(marker), "w"), "open"),
        "popen": (Call(subprocess.Popen, ["touch", str(marker)]), ".Popen"),
        "getattr": (Call(getattr, "a", "upper"), ".getattr"),
        "nested": ({"model": {"a": [{"b": (Call(os.system, shell),)}]}}, "system"),
        "in an array": (np.array([Call(os.system, shell)], object), "an array of 'O8'"),
        "structures": (np.zeros(2, [("a", "f4")]), "an array of 'V4'"),
        "strings": (np.array(["abc"]), "an array of 'U3'"),
        "dates": (np.zeros(2, "M8[s]"), "an array of 'M8'"),
        "torch": ({"a": torch.ones(2)}, "torch._utils._rebuild_tensor_v2"),
        "codec": (Call(__import__("_codecs").encode, "a", "rot13"), "the codec 'rot13'"),
        "class": (Path("a"), "pathlib"),
        "exception": (ValueError("a"), ".ValueError"),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", attacks(Path()))
def test_code_does_not_run_and_is_named(tmp_path: Path, name: str, protocol: int) -> None:
    marker = tmp_path / "ran"
    content, named = attacks(marker)[name]
    path = dump(tmp_path / "evil.pkl", content, protocol)
    with pytest.raises(CellDataError) as error:
        load_arrays(path)
    assert str(path) in str(error.value) and named in str(error.value)
    assert not marker.exists()


def numpy_parts() -> tuple[Any, Any]:
    return np.array(0).__reduce__()[0], np.dtype


@pytest.mark.parametrize(
    "content",
    [
        # An array of a terabyte that the file does not hold, by every way there is.
        Call(numpy_parts()[0], np.ndarray, (1 << 40,), b"b"),
        Call(np.ndarray, (1 << 40,)),
        State(
            numpy_parts()[0],
            (np.ndarray, (0,), b"b"),
            (1, (1 << 40,), np.dtype("u1"), False, b"abc"),
        ),
        State(
            numpy_parts()[0],
            (np.ndarray, (0,), b"b"),
            (1, (1 << 40, 1 << 40), np.dtype("u1"), False, b"abc"),
        ),
        State(
            numpy_parts()[0], (np.ndarray, (0,), b"b"), (1, (-3,), np.dtype("u1"), False, b"abc")
        ),
        # Objects that claim to be numbers, whose bytes would be taken for addresses.
        State(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)),
        State(np.dtype, ("f4", False, True), (3, "|", None, ("a",), {"a": 1}, 8, 1, 27)),
        State(np.dtype, ("f4", False, True), (3, "x", None, None, None, -1, -1, 0)),
        Call(bytearray, 1 << 40),
        Call(bytes, 1 << 40),
        Call(builtins.range, 1 << 40),
    ],
)
def test_hostile_arrays_fail_fast_and_cleanly(tmp_path: Path, content: Any) -> None:
    start = time.perf_counter()
    with pytest.raises(CellDataError, match=r"evil\.pkl"):
        load_arrays(dump(tmp_path / "evil.pkl", content, 2))
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        b"\x80\x04.",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 36) + b"ab.",  # BYTEARRAY8 of 64 GB
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 36) + b"ab.",  # BINBYTES8
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 36) + b"ab.",  # FRAME
        b"\x80\x02}r\xff\xff\xff\x7f0.",  # LONG_BINPUT: a memo of 2**31 places in C
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02(lp0\ng9\n.",  # a memo that is not there
        b"\x80\x05\x97.",  # an out-of-band buffer
        b"(lp0\nPpersistent\na.",
        b"\x80\x04\x8c\x08builtins\x8c\x06system\x93.",
    ],
)
def test_garbage_and_declared_sizes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.pkl"
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(CellDataError, match=r"bad\.pkl"):
        load_arrays(path)
    assert time.perf_counter() - start < 1


def test_a_file_cannot_change_what_it_may_call(tmp_path: Path) -> None:
    # BUILD on an admitted function, with a state for its attributes.
    data = b"\x80\x02ccollections\nOrderedDict\nN}U\x05_callU\x01xs\x86b."
    path = tmp_path / "evil.pkl"
    path.write_bytes(data)
    assert any(op.name == "BUILD" for op, *_ in pickletools.genops(data))
    with pytest.raises(CellDataError, match="a change to a function"):
        load_arrays(path)
    assert load_arrays(dump(tmp_path / "a.pkl", OrderedDict(a=1))) == {"a": 1}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_cut_is_refused(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({"model": {"w": ARRAYS["float"]}, **PLAIN}, protocol=protocol)
    path = tmp_path / "cut.pkl"
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(CellDataError, match=r"cut\.pkl"):
            load_arrays(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_changed_bytes_give_arrays_or_an_error(tmp_path_factory, data: Any) -> None:
    content = bytearray(pickle.dumps({"model": {"w": ARRAYS["float"]}, **PLAIN}, protocol=4))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.pkl"
    path.write_bytes(content)
    try:
        load_arrays(path)
    except CellDataError as error:
        assert "changed.pkl" in str(error)
