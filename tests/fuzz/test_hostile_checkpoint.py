"""Weights made to do harm, one by one, and the error that each is refused with."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cellseg_d2.checkpoint import CellCheckpointer
from cellseg_d2.errors import CellDataError

from .checkpoint_target import model, saved, with_pickle


class Call:
    """Pickles to a call, and to a state for what it returned."""

    def __init__(self, function: Any, arguments: tuple, *state: Any) -> None:
        self.parts = function, arguments, *state

    def __reduce__(self) -> tuple:
        return self.parts


WEIGHTS = {name: value.numpy() for name, value in model().state_dict().items()}
TUPLES = b"\x80\x02}" + b"K\x01K\x02\x86" + b"q\x00h\x00\x86" * 60 + b"K\x01s."
SCALAR = np.float32(1).__reduce__()[0]
BUFFER = np.ones(1).__reduce_ex__(5)[0]
RECONSTRUCT = np.ones(1).__reduce__()[0]


def nested_lists(depth: int) -> list:
    """A list that is 2^depth long when it is written out."""
    value: list = [1]
    for _ in range(depth):
        value = [value, value]
    return value


def nested_sets(depth: int) -> frozenset:
    value = frozenset([1])
    for number in range(depth):
        value = frozenset([value, frozenset([value, number])])
    return value


def hiding(name: str) -> Call:
    """A dict with a number where it has a method."""
    return Call(OrderedDict, (), {name: 3})


PICKLES: dict[str, tuple[bytes | Callable[[], Any], str]] = {
    "tuples in tuples as a key": (TUPLES, "tuples in tuples"),
    "sets in sets": (lambda: {"a": nested_sets(8)}, "a set of tuples or sets"),
    "a product of texts for a shape": (
        lambda: {"a": Call(BUFFER, (b"", np.dtype("f4"), (b"x", 2**40), "C"))},
        "no readable pickle.*ValueError",
    ),
    "a shape without end": (
        lambda: {"a": Call(BUFFER, (b"", np.dtype("f4"), nested_lists(60), "C"))},
        "no readable pickle.*ValueError",
    ),
    "an array of a shape without end": (
        lambda: {"a": Call(RECONSTRUCT, (np.ndarray, nested_lists(60), b"b"))},
        "without its content",
    ),
    "a codec without end": (
        lambda: {"a": Call(__import__("_codecs").encode, ("a", nested_lists(60)))},
        "the codec",
    ),
    "a dict without keys": (lambda: {"model": hiding("keys")}, "a change to a dict's methods"),
    "a dict without items": (lambda: hiding("items"), "a change to a dict's methods"),
    "a key that is a tuple": (lambda: {("a", 1): np.ones(2)}, r"ndarray under \('a', 1\)"),
    "bytes longer than the file": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40), "no readable"),
    "a memo of 64 GB": (b"\x80\x02}r\xff\xff\xff\x7f.", "an empty one"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_hostile_pickle(tmp_path: Path, name: str) -> None:
    made, message = PICKLES[name]
    path = tmp_path / "a.pkl"
    path.write_bytes(made if isinstance(made, bytes) else pickle.dumps(made(), 5))
    with pytest.raises(CellDataError, match=message) as caught:
        CellCheckpointer(model()).load(str(path), [])
    assert len(str(caught.value)) < 2000


def older(program: bytes) -> bytes:
    """A file of torch.save's older format whose content is this program."""
    plain = saved({}, zip_format=False)
    empty = pickle.dumps({}, 2)
    head, found, tail = plain.rpartition(empty)
    assert found
    return head + program + tail


def zipped(program: bytes) -> bytes:
    return with_pickle(saved({}), lambda _: program)


def compressed(archive: bytes) -> bytes:
    result = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as source,
        zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    return result.getvalue()


def calling(name: str, *arguments: Any) -> bytes:
    """A program that calls what is called so, as protocol 2 writes it."""
    module, _, function = name.rpartition(".")
    packed = pickle.dumps(arguments, 2)[2:-1]
    return b"\x80\x02" + f"c{module}\n{function}\n".encode() + packed + b"R."


SAVED = {
    "a program": (zipped(calling("os.system", "true")), "asks for .*system"),
    "a program in the older format": (older(calling("os.system", "true")), "asks for .*system"),
    "tuples in tuples as a key": (zipped(TUPLES), "tuples in tuples"),
    "tuples in tuples in the older format": (older(TUPLES), "tuples in tuples"),
    "a text longer than the file": (
        older(b"\x80\x02X" + struct.pack("<I", 2**31 - 1)),
        "no readable checkpoint",
    ),
    "bytes by their number": (zipped(calling("builtins.bytearray", 2**40)), "asks for bytearray"),
    "a tensor by its size": (zipped(calling("torch.FloatTensor", 2**40)), "torch.FloatTensor"),
    "storage larger than the file": (
        saved({"w": torch.ones(1)}, zip_format=False).replace(b"K\x01N", b"J\xff\xff\xff\x7fN"),
        "storage larger than the file",
    ),
    "a sparse tensor": (saved({"conv.weight": torch.eye(3).to_sparse()}), "asks for torch"),
    "a tensor without content": (
        saved({"conv.weight": torch.ones(2, 1, 3, 3, device="meta")}),
        "asks for torch",
    ),
    "a dict without items": (
        zipped(b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb."),
        "a change to a dict's methods",
    ),
    "compressed storage": (compressed(saved({"w": torch.ones(9)})), "compressed storage"),
    "half a file": (saved({"w": torch.ones(9)})[:300], "no readable checkpoint"),
    "nothing": (b"", "no readable checkpoint"),
}


@pytest.mark.parametrize("name", SAVED)
def test_hostile_checkpoint(tmp_path: Path, name: str) -> None:
    content, message = SAVED[name]
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CellDataError, match=message):
        CellCheckpointer(model()).load(str(path), [])


@pytest.mark.parametrize(
    "state", [3, {}, {"state": {}, "param_groups": [3]}, {"state": {}, "param_groups": [{}, {}]}]
)
def test_a_state_that_is_no_optimizers(tmp_path: Path, state: Any) -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    path = tmp_path / "a.pth"
    torch.save({"model": network.state_dict(), "optimizer": state}, path)
    with pytest.raises(CellDataError, match="a state that cannot be loaded"):
        CellCheckpointer(network, optimizer=optimizer).load(str(path))


@pytest.mark.parametrize("zip_format", [True, False])
def test_what_trainings_save_is_still_read(tmp_path: Path, zip_format: bool) -> None:
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), 0.1)
    network(torch.ones(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    content = {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "random": torch.get_rng_state(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "shape": torch.Size([2, 3]),
        "names": {"a", "b"},
        "raw": b"\x00\xff",
        "text": ["é", None, 1.5, True, 2**70],
    }
    path = tmp_path / "a.pth"
    path.write_bytes(saved(content, zip_format))
    rest = CellCheckpointer(network, optimizer=optimizer).load(str(path))
    assert rest["text"] == content["text"] and rest["names"] == content["names"]
    assert rest["raw"] == content["raw"] and torch.equal(rest["random"], content["random"])
    assert rest["shape"] == content["shape"] and torch.equal(rest["half"], content["half"])
