"""Files of weights: read without running what is in them, and written whole or not at all."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..errors import CellDataError
from .survey import survey
from .unpickler import RefusedError, load_arrays


def read_tensors(path: str | PathLike[str]) -> Any:
    """Read what ``torch.save`` wrote, if it is tensors, numbers and plain containers.

    Args:
        path: of a ``.pth`` file.

    Returns:
        What was saved, tensors on the CPU.

    Raises:
        CellDataError: for a file that names a class or function, or that is cut short or none.
    """
    try:
        survey(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and storage each raise their own
        named = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
        if named or isinstance(error, RefusedError):
            raise CellDataError(
                path,
                f"a checkpoint that asks for {named[1] if named else error}",
                "tensors, numbers and plain containers only",
                "do not use the file unless you made it: to load it could run a program",
            ) from error
        reason = (str(error) or "empty").splitlines()[0]
        raise CellDataError(
            path,
            f"no readable checkpoint ({type(error).__name__}: {reason})",
            "a file that torch.save wrote",
            "get the file again; it may be cut short",
        ) from error


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of Detectron2, its model zoo, Caffe2 or pycls, or a plain state dict.

    Args:
        path: ``.pkl`` is read as a pickle of arrays, anything else as ``torch.save``'s format.

    Returns:
        ``model`` {parameter name: array or tensor} and whatever else the file holds;
        ``matching_heuristics`` is true where names are to be matched by their ends.

    Raises:
        CellDataError: for a file that cannot be read, or holds no weights.
    """
    suffix = Path(path).suffix
    loaded = load_arrays(path) if suffix == ".pkl" else read_tensors(path)
    if not isinstance(loaded, dict):
        raise _no_weights(path, f"a {type(loaded).__name__}")
    checkpoint = dict(loaded)
    if suffix == ".pyth":
        checkpoint = _from_pycls(path, checkpoint)
    elif suffix == ".pkl" and not {"model", "__author__"} <= checkpoint.keys():
        checkpoint = _from_caffe2(checkpoint)
    elif "model" not in checkpoint:
        checkpoint = {"model": checkpoint}
    check_state_dict(path, checkpoint["model"])
    return checkpoint


def check_state_dict(path: str | PathLike[str], weights: Any) -> None:
    """Check that something from a file is {name: array or tensor}, and not empty.

    Raises:
        CellDataError: where it is not.
    """
    if not isinstance(weights, Mapping) or not weights:
        raise _no_weights(path, f"a {type(weights).__name__}, or an empty one")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray | torch.Tensor):
            raise _no_weights(path, f"{type(value).__name__} under {reprlib.repr(name)}")
        if isinstance(value, torch.Tensor) and (value.layout != torch.strided or value.is_meta):
            raise _no_weights(path, f"a tensor without content of its own under {name!r}")


@contextmanager
def replace_file(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to write that takes its name only once all of it is on the disk.

    Args:
        path: of the file; its folder is made where it is missing. What stands there stays until
            the new file is whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_parts(folder: str | PathLike[str]) -> None:
    """Remove what ``replace_file`` left of checkpoints when its process was killed.

    Args:
        folder: of the checkpoints; no other process may be writing there.
    """
    for part in Path(folder).glob("*.pth.part"):
        part.unlink()


def _sync_folder(folder: Path) -> None:
    """Let a new name in a folder outlive a loss of power, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _from_pycls(path: str | PathLike[str], checkpoint: dict[str, Any]) -> dict[str, Any]:
    weights = checkpoint.get("model_state")
    if not isinstance(weights, Mapping):
        raise _no_weights(path, "no model_state, as pycls writes")
    weights = {k: v for k, v in weights.items() if not str(k).endswith("num_batches_tracked")}
    return {"model": weights, "__author__": "pycls", "matching_heuristics": True}


def _from_caffe2(checkpoint: dict[str, Any]) -> dict[str, Any]:
    # Detectors have blobs, ImageNet models are bare.
    weights = checkpoint.get("blobs", checkpoint)
    if isinstance(weights, Mapping):
        weights = {k: v for k, v in weights.items() if not str(k).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _no_weights(path: str | PathLike[str], found: str) -> CellDataError:
    return CellDataError(
        path,
        found,
        "weights: a dict of arrays by parameter name",
        "give a checkpoint, or a file of tools/convert_weights.py",
    )
