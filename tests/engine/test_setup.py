"""Normalisation by the training images, against NumPy over the same pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.engine import normalize_by_dataset, register_datasets


def write(root: Path, images: list[np.ndarray]) -> None:
    for k, image in enumerate(images):
        folder = root / f"image{k}"
        folder.mkdir(parents=True)
        tifffile.imwrite(folder / "image.tif", image)


def config(root: Path, tmp_path: Path, image_format: str):
    options = ["DATASETS.CELL.ROOT", str(root), "DATASETS.CELL.VAL_NAMES", ["image0"]]
    options += ["INPUT.CELL.NORMALIZATION", "dataset", "INPUT.FORMAT", image_format]
    options += ["DATASETS.TRAIN", ("cells_train",), "OUTPUT_DIR", str(tmp_path / "out")]
    cfg = load_config(options=options)
    register_datasets(cfg)
    return cfg


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_statistics_of_the_training_images_alone(tmp_path: Path, image_format: str) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 80 * (k + 1), (9 + k, 7, 3)).astype(np.uint8) for k in range(3)]
    write(tmp_path / "data", images)
    cfg = config(tmp_path / "data", tmp_path, image_format)
    normalize_by_dataset(cfg)
    pixels = np.concatenate([image.reshape(-1, 3) for image in images[1:]]).astype(np.float64)
    order = slice(None) if image_format == "RGB" else slice(None, None, -1)
    assert pytest.approx(pixels.mean(axis=0)[order], abs=1e-3) == cfg.MODEL.PIXEL_MEAN
    assert pytest.approx(pixels.std(axis=0)[order], abs=1e-3) == cfg.MODEL.PIXEL_STD
    assert cfg.INPUT.CELL.NORMALIZATION == "config", "a saved config would be computed anew"


def test_nothing_happens_unless_asked(tmp_path: Path) -> None:
    cfg = load_config(options=["MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]])
    normalize_by_dataset(cfg)
    assert cfg.MODEL.PIXEL_MEAN == [1.0, 2.0, 3.0]


def test_images_of_one_colour_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "data", [np.full((5, 5, 3), 7, np.uint8)] * 2)
    with pytest.raises(ConfigError, match="no variation"):
        normalize_by_dataset(config(tmp_path / "data", tmp_path, "RGB"))
