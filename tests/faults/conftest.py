"""Runs without a fault, and small disks."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

import predict
from cellseg_d2 import load_config
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset

from .runs import CONFIG, FILES, TINY, Predict, train


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Let each run log to the stream that is in place now, and sum in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    setup_logger.cache_clear()
    for name in ("cellseg_d2", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()
    for name in ("cells_train", "cells_val", "cells_trainval", "cells_test"):
        DatasetCatalog.pop(name, None)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write_dataset(folder, SyntheticParameters(train=4, test=4, size=(56, 64), cells=(3, 6)))
    return folder


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory) -> Path:
    """The folder of a training without a fault."""
    folder = tmp_path_factory.mktemp("trained")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert train(data, folder) == 0
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="session")
def images(data: Path) -> Path:
    return data / "test_release"


@pytest.fixture(scope="session")
def predicted(data: Path, images: Path, tmp_path_factory) -> tuple[Predict, Path]:
    """A command that predicts images into a folder, and what it gives without a fault."""
    folder = tmp_path_factory.mktemp("model")
    cfg = load_config(CONFIG, TINY)
    torch.manual_seed(0)
    network = build_model(cfg)
    torch.nn.init.normal_(network.roi_heads.box_predictor.cls_score.weight, std=0.5)
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    torch.save({"model": network.state_dict()}, cfg.MODEL.WEIGHTS)
    (folder / "config.yaml").write_text(cfg.dump())

    def run(source: Path, output: Path) -> int:
        arguments = ["--config-file", str(folder / "config.yaml"), "--input", str(source)]
        return predict.run([*arguments, "--output", str(output), *FILES])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert run(images, folder / "out") == 0
    torch.set_num_threads(threads)
    return run, folder / "out"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a disk of its own with the given options, or mount it anew with others."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if folder.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no disk can be mounted here")
        return folder

    yield mount
    # The log files of a run are still open.
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)
