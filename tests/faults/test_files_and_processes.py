"""Kills, files that go and dead workers in the middle of runs.

Oracle: the same run without the fault.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import predict
import train_net
from cellseg_d2.engine import CellTrainer

from .runs import Predict, assert_same_training, contents, last_line, train


@pytest.mark.slow
def test_killed_runs_end_as_those_that_were_not(repository: Path) -> None:
    script = repository / "tools" / "kill_test.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", "5", "--seed", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert re.search(r"^training: 3 kills in \d+ runs, 0 faults$", done.stdout, re.MULTILINE)
    assert re.search(r"^prediction: 2 kills in \d+ runs, 0 faults$", done.stdout, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("name", ["image.tif", "class*.tif"])
def test_files_that_vanish_from_a_training(
    workers: str, name: str, data: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    root = tmp_path / "data"
    shutil.copytree(data, root)
    begin = train_net.write_run_record

    def vanish(*arguments: object) -> None:
        begin(*arguments)
        for path in root.glob(f"train/*/{name}"):
            path.unlink()

    monkeypatch.setattr(train_net, "write_run_record", vanish)
    assert train(root, tmp_path / "run", "DATALOADER.NUM_WORKERS", workers) == 1
    error = last_line(capsys)
    pattern = re.escape(str(root)) + r"/train/[^/]+/" + name.replace("*", r"\d")
    assert re.match(rf"error: {pattern}: found no such file", error), error


@pytest.mark.slow
@pytest.mark.parametrize("change", ["removed", "of another size"])
def test_an_image_that_changes_during_a_prediction(
    change: str, images: Path, predicted: tuple[Predict, Path], tmp_path: Path, monkeypatch, capsys
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    victim = sorted(folder.iterdir())[1]
    whole = victim.read_bytes()
    run, expected = predicted
    predict_folder = predict.predict_folder

    def change_first(*arguments: object) -> object:
        victim.unlink()
        if change != "removed":
            noise = np.random.default_rng(0).integers(0, 256, (70, 50, 3)).astype(np.uint8)
            tifffile.imwrite(victim, noise, photometric="rgb")
        return predict_folder(*arguments)

    monkeypatch.setattr(predict, "predict_folder", change_first)
    assert run(folder, tmp_path / "out") == 1
    error = last_line(capsys)
    assert error.startswith(f"error: {victim}: found ") and "as when the run began" in error
    assert not list(tmp_path.glob("out/test-results*"))
    assert len(list(tmp_path.glob("out/parts/*.jsonl"))) == 3, "the others are not predicted"
    monkeypatch.undo()
    victim.write_bytes(whole)
    assert run(folder, tmp_path / "out") == 0
    assert contents(tmp_path / "out") == contents(expected)


@pytest.mark.slow
def test_a_loader_worker_that_is_killed(
    data: Path, trained: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    step = CellTrainer.run_step

    def kill_workers(self: CellTrainer) -> None:
        if self.iter == 3:
            workers = multiprocessing.active_children()
            assert workers
            for worker in workers:
                os.kill(worker.pid, signal.SIGKILL)
                worker.join()
            while True:  # what is loaded already is still handed out
                step(self)
        step(self)

    monkeypatch.setattr(CellTrainer, "run_step", kill_workers)
    run = tmp_path / "run"
    assert train(data, run, "DATALOADER.NUM_WORKERS", "1") == 1
    error = last_line(capsys)
    assert error.startswith("error: a process that loads images died (DataLoader worker")
    assert "DATALOADER.NUM_WORKERS (now 1" in error
    assert (run / "last_checkpoint").read_text() == "model_0000001.pth"
    monkeypatch.undo()
    assert train(data, run) == 0
    assert_same_training(run, trained)


@pytest.mark.slow
def test_a_training_step_out_of_memory(
    data: Path, trained: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    build_model = CellTrainer.build_model

    def build(cfg: object) -> torch.nn.Module:
        model = build_model(cfg)
        forward = model.forward
        calls = iter(range(100))

        def limited(batch: object) -> object:
            if next(calls) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
            return forward(batch)

        model.forward = limited
        return model

    monkeypatch.setattr(CellTrainer, "build_model", staticmethod(build))
    run = tmp_path / "run"
    assert train(data, run) == 1
    error = last_line(capsys)
    for text in ("SOLVER.IMS_PER_BATCH (now 2", "INPUT.CROP.SIZE (now [48, 48])", "1 GiB"):
        assert text in error
    monkeypatch.undo()
    assert train(data, run) == 0
    assert_same_training(run, trained)
