"""The fuzzed reader of weights: pickles of arrays, and what `torch.save` writes."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from cellseg_d2.checkpoint import CellCheckpointer
from cellseg_d2.errors import CellDataError

from .mutation import mutate_bytes, pick_integer
from .targets import Target, refusal

_GLOBALS = (
    *("os system", "posix system", "builtins eval", "builtins exec", "__builtin__ getattr"),
    *("os mkdir", "subprocess Popen", "numpy ndarray", "numpy dtype", "collections OrderedDict"),
    *("numpy.core.multiarray _reconstruct", "numpy._core.multiarray scalar", "_codecs encode"),
    *("numpy._core.numeric _frombuffer", "builtins bytes", "builtins set", "builtins bytearray"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch FloatStorage"),
    *("torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_qtensor", "torch Size"),
    *("torch._utils _rebuild_meta_tensor_no_storage", "torch FloatTensor", "torch device"),
)


def model() -> nn.Module:
    """A small network with a norm."""
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), norm=nn.BatchNorm2d(2)))


def saved(content: Any, zip_format: bool = True) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zip_format)
    return file.getvalue()


def with_pickle(archive: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A file of torch.save with its pickle changed; checksums are right again."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(result, "w") as target:
        for member in source.infolist():
            content = source.read(member)
            if member.filename.endswith("/data.pkl"):
                content = change(content)
            target.writestr(member.filename, content)
    return result.getvalue()


class CheckpointTarget(Target):
    """`CellCheckpointer.load` into a small model, to resume (`.pth`) or to start from."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.model(torch.ones(2, 1, 4, 4)).sum().backward()
        self.optimizer.step()
        weights = self.model.state_dict()
        arrays = {name: value.numpy() for name, value in weights.items()}
        whole = {"model": weights, "optimizer": self.optimizer.state_dict(), "iteration": 7}
        self.seeds = {
            "whole.pth": saved(whole),
            "weights.pt": saved(weights),
            "legacy.pt": saved(weights, zip_format=False),
            "pycls.pyth": saved({"model_state": weights}),
            **{
                f"arrays{protocol}.pkl": pickle.dumps(
                    {"model": arrays, "__author__": "me", "matching_heuristics": True}, protocol
                )
                for protocol in (2, 4, 5)
            },
            "blobs.pkl": pickle.dumps(
                {"blobs": {"conv_w": arrays["conv.weight"], "conv_b": arrays["conv.bias"]}}, 2
            ),
        }

    def change(self, rng: Random, name: str, data: bytes) -> bytes:
        others = [seed for key, seed in self.seeds.items() if Path(key).suffix == Path(name).suffix]
        if name.endswith(".pkl") or name == "legacy.pt":
            return _mutate_pickle(rng, data, others)
        if rng.random() < 0.25:
            return mutate_bytes(rng, data, others)
        return with_pickle(data, lambda content: _mutate_pickle(rng, content, [content]))

    def check(self, path: Path) -> bool:
        checkpointer = CellCheckpointer(self.model, optimizer=self.optimizer)
        try:
            checkpointer.load(str(path), None if path.suffix == ".pth" else [])
        except CellDataError as error:
            return refusal(error)
        for value in self.model.state_dict().values():
            assert value.layout == torch.strided and value.device.type == "cpu"
        return True


def _mutate_pickle(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """Change bytes, or put instructions in between."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        if rng.random() < 0.4:
            data = mutate_bytes(rng, data, others)
        else:
            at = rng.randrange(len(data) + 1)
            new = b"".join(_instruction(rng) for _ in range(rng.choice((1, 2, 4))))
            data = data[:at] + new + data[at + rng.choice((0, 0, 1, len(new))) :]
    return data


def _instruction(rng: Random) -> bytes:
    kind = rng.random()
    if kind < 0.2:
        module, name = rng.choice(_GLOBALS).split()
        return f"c{module}\n{name}\n".encode()
    if kind < 0.4:
        number = pick_integer(rng) % 2**31
        return b"J" + struct.pack("<i", number)
    if kind < 0.5:
        word = rng.choice((b"exploded", b"latin1", b"f4", b"O8", b"C", b"model", b"keys", b"\xff"))
        return b"X" + struct.pack("<I", len(word)) + word
    if kind < 0.6:
        return rng.choice((b"h", b"q")) + bytes([rng.randrange(40)])
    return bytes(
        [rng.choice(b"()*+.012abcdegijlopqrstu}]N\x80\x81\x85\x86\x87\x88\x89\x8f\x90\x94Q")]
    )
