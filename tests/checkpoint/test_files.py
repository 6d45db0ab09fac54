"""Checkpoint files: what is read of them, what is refused, and that they are written whole."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cellseg_d2 import CellDataError
from cellseg_d2.checkpoint.files import (
    read_checkpoint,
    read_tensors,
    remove_parts,
    replace_file,
)

WEIGHTS = {"a.weight": np.ones((2, 3), np.float32), "b_momentum": np.zeros(2, np.float32)}
TENSORS = {k: torch.from_numpy(v) for k, v in WEIGHTS.items()}


class Evil:
    """Runs a command when it is loaded by ``pickle.load``."""

    def __init__(self, marker: Path) -> None:
        self.command = f"touch {marker}"

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "names", "author", "heuristics"),
    [
        # Detectron2's own, a bare state dict, and one of a training.
        ("a.pth", {"model": TENSORS, "iteration": 3}, 2, None, None),
        ("a.pth", OrderedDict(TENSORS), 2, None, None),
        ("a.pkl", {"model": WEIGHTS, "__author__": "x"}, 2, "x", None),
        (
            "a.pkl",
            {"model": WEIGHTS, "__author__": "x", "matching_heuristics": True},
            2,
            "x",
            True,
        ),
        # Caffe2: bare for ImageNet, under blobs for detectors; momenta are dropped.
        ("a.pkl", WEIGHTS, 1, "Caffe2", True),
        ("a.pkl", {"blobs": WEIGHTS}, 1, "Caffe2", True),
        # pycls
        (
            "a.pyth",
            {"model_state": TENSORS | {"c.num_batches_tracked": torch.tensor(3)}, "epoch": 3},
            2,
            "pycls",
            True,
        ),
    ],
)
def test_layouts(tmp_path: Path, name, content, names, author, heuristics) -> None:
    checkpoint = read_checkpoint(write(tmp_path / name, content))
    assert len(checkpoint["model"]) == names
    assert torch.equal(torch.as_tensor(checkpoint["model"]["a.weight"]), TENSORS["a.weight"])
    assert checkpoint.get("__author__") == author
    assert checkpoint.get("matching_heuristics") == heuristics
    assert checkpoint.get("iteration") == (3 if "iteration" in content else None)


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.pyth", "a.bin", "a"])
@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("legacy", [False, True])
def test_code_does_not_run(tmp_path: Path, name: str, depth: int, legacy: bool) -> None:
    marker = tmp_path / "ran"
    content: Any = Evil(marker)
    for _ in range(depth):
        content = {"model": [content], "a": torch.ones(1)} if "pkl" not in name else {"m": content}
    path = tmp_path / name
    if path.suffix == ".pkl":
        write(path, content)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CellDataError) as error:
        read_checkpoint(path)
    assert f"{path}: found" in str(error.value) and "system" in error.value.found
    assert not marker.exists()
    # The oracle: the file does run it where it is let.
    if name == "a.pth":
        torch.load(path, weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [{"model": [1, 2]}, {"model": {}}, {"model": {"a": 3}}, {"model": {1: torch.ones(1)}}, [], 3],
)
def test_files_without_weights(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CellDataError, match=r"a\.pth: found .*dict of arrays by parameter name"):
        read_checkpoint(write(tmp_path / "a.pth", content))


def test_pickles_of_other_things(tmp_path: Path) -> None:
    for content in ([], {"model": 3, "__author__": "x"}, {"blobs": 3}, {"a": "b"}):
        with pytest.raises(CellDataError, match=r"a\.pkl: found "):
            read_checkpoint(write(tmp_path / "a.pkl", content))
    with pytest.raises(CellDataError, match=r"a\.pyth: found no model_state"):
        read_checkpoint(write(tmp_path / "a.pyth", {"model": TENSORS}))


@pytest.mark.parametrize("legacy", [False, True])
def test_cut_and_changed_tensors(tmp_path: Path, legacy: bool) -> None:
    buffer = io.BytesIO()
    torch.save({"model": TENSORS}, buffer, _use_new_zipfile_serialization=not legacy)
    data = buffer.getvalue()
    path = tmp_path / "cut.pth"
    for end in (*range(0, len(data) - 1, 37), len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(CellDataError, match=r"cut\.pth: found"):
            read_tensors(path)
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(CellDataError, match=r"cut\.pth: found no readable.*get the file again"):
        read_tensors(path)


def test_a_tensor_larger_than_its_storage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", {"model": {"w": torch.ones(3)}})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    # The shape, BININT1 3 and TUPLE1, becomes 2**31 - 1.
    assert entries[pickled].count(b"K\x03\x85") == 1
    entries[pickled] = entries[pickled].replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(CellDataError, match=r"a\.pth: found no readable checkpoint"):
        read_tensors(path)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.pth"
    with replace_file(path) as file:
        file.write(b"first")
    assert path.read_bytes() == b"first"
    with pytest.raises(KeyboardInterrupt), replace_file(path) as file:
        file.write(b"second, cut")
        file.flush()
        assert path.read_bytes() == b"first"
        raise KeyboardInterrupt
    assert path.read_bytes() == b"first"
    assert [p.name for p in path.parent.iterdir()] == ["a.pth"]


def test_what_a_killed_process_left_of_a_checkpoint_is_removed(tmp_path: Path) -> None:
    for name in ("model_0000001.pth", "model_0000003.pth.part", "metrics.json.part"):
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["metrics.json.part", "model_0000001.pth"], "others' files are theirs"
    remove_parts(tmp_path / "none")
