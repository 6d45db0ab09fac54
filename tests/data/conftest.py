"""Fixtures that several test modules of the data share."""

from __future__ import annotations

from pathlib import Path

import pytest

from .label_roots import MAPS, label_map, write


@pytest.fixture
def tif(tmp_path: Path) -> Path:
    """Where a test may write a TIFF."""
    return tmp_path / "a.tif"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of three images."""
    root = tmp_path / "data"
    write(root / "train/b", MAPS)
    write(root / "train/a", {})
    write(root / "train/c", {4: label_map((9, 3, 9, 3, 9)), 3: label_map()})
    return root
