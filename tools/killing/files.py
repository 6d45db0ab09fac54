"""Files of killed runs, read whole and compared."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from cellseg_d2.checkpoint.files import read_tensors
from cellseg_d2.data import read_label_map


class Difference(Exception):  # noqa: N818
    """Something that a kill has changed; the message says what."""


def check(path: Path) -> Any:
    """Read a file whole; return what is in it."""
    try:
        if path.suffix == ".pth":
            return read_tensors(path)
        if path.name == "metrics.json":  # appended to: its last line may be cut
            lines = path.read_text().splitlines(keepends=True)
            return [json.loads(line) for line in lines if line.endswith("\n")]
        if path.suffix == ".json":
            return json.loads(path.read_text())
        if path.suffix == ".yaml":
            return dict(yaml.safe_load(path.read_text()))
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
        if path.suffix == ".png":
            with Image.open(path) as picture:
                return picture.load()
        if path.name.startswith("class"):
            return read_label_map(path)
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                return archive.testzip()
    except (ValueError, OSError, TypeError, yaml.YAMLError, zipfile.BadZipFile) as error:
        raise Difference(f"{path} is not whole: {error}") from error
    return None


def same(a: Any, b: Any) -> bool:
    """Compare nested containers of tensors and numbers to the bit; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b or (a != a and b != b))


def no_half_files(folder: Path) -> None:
    """Refuse what is written aside and should be gone by the end."""
    left = [path for path in folder.rglob("*") if ".part" in path.name]
    if left:
        raise Difference(f"{folder}: half files are left: {', '.join(p.name for p in left)}")


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their names, but for those that are written aside."""
    names = {p: str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: path.read_bytes() for path, name in names.items() if ".part" not in name}
