"""Full and read-only disks in the middle of runs. Oracle: the same run without the fault."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cellseg_d2.engine import CellTrainer
from cellseg_d2.export import folder

from .runs import Predict, assert_same_training, contents, largest_file, last_line, train


@pytest.mark.slow
def test_a_checkpoint_that_finds_no_room(
    data: Path, trained: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    run, limit = tmp_path / "run", contextlib.ExitStack()
    step = CellTrainer.run_step

    def fill_disk(self: CellTrainer) -> None:
        step(self)
        if self.iter == 3:
            limit.enter_context(largest_file(500_000))

    monkeypatch.setattr(CellTrainer, "run_step", fill_disk)
    with limit:
        assert train(data, run) == 1
    error = last_line(capsys)
    assert error.startswith(f"error: {run}/model_0000003.pth: the disk does not take the file")
    assert "make room" in error and "--resume from model_0000001.pth" in error
    torch.load(run / "model_0000001.pth")
    assert [path.name for path in run.glob("model*")] == ["model_0000001.pth"]
    monkeypatch.undo()
    assert train(data, run) == 0
    assert_same_training(run, trained)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 60, 1500, 3500])
def test_training_on_a_full_disk(
    kilobytes: int, data: Path, trained: Path, small_disk, tmp_path: Path, capsys
) -> None:
    """The config, the metrics or record, the first and the second checkpoint find no room."""
    run = small_disk(f"size={kilobytes}k") / "run"
    cache = ["DATASETS.CELL.CACHE_DIR", str(tmp_path / "cache")]
    assert train(data, run, *cache) == 1
    error = last_line(capsys)
    assert error.startswith(f"error: {run}") and os.strerror(28) in error
    assert "make room" in error.lower()
    last = run / "last_checkpoint"
    if last.exists():
        torch.load(run / last.read_text())
    small_disk("size=200m")
    assert train(data, run, *cache) == 0
    assert_same_training(run, trained)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [16, 60, 150])
def test_prediction_on_a_full_disk(
    kilobytes: int, images: Path, predicted: tuple[Predict, Path], small_disk, capsys
) -> None:
    run, expected = predicted
    out = small_disk(f"size={kilobytes}k") / "out"
    assert run(images, out) == 1
    error = last_line(capsys)
    assert error.startswith(f"error: {out}: cannot be written to") and os.strerror(28) in error
    assert not list(out.glob("test-results*"))
    finished = {path: path.read_bytes() for path in out.glob("parts/*.jsonl")}
    small_disk("size=100m")
    for path, content in finished.items():
        assert path.read_bytes() == content
    assert run(images, out) == 0
    assert contents(out) == contents(expected)


@pytest.mark.slow
def test_a_submission_that_finds_no_room(
    images: Path, predicted: tuple[Predict, Path], tmp_path: Path, monkeypatch, capsys
) -> None:
    run, expected = predicted
    out = tmp_path / "out"
    write = folder.write_submission

    def write_on_full_disk(*arguments: object) -> object:
        with largest_file((expected / "test-results.json").stat().st_size // 2):
            return write(*arguments)

    monkeypatch.setattr(folder, "write_submission", write_on_full_disk)
    assert run(images, out) == 1
    error = last_line(capsys)
    assert error.startswith(f"error: {out}: cannot be written to") and "same command" in error
    assert not list(out.glob("test-results*")), "half a submission is left"
    assert len(list(out.glob("parts/*.jsonl"))) == 4, "finished answers are lost"
    pictures = {path: path.stat().st_mtime_ns for path in out.glob("overlays/*")}
    monkeypatch.undo()
    assert run(images, out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("overlays/*")} == pictures
    assert contents(out) == contents(expected)


@pytest.mark.slow
def test_a_large_label_map_on_a_full_disk_is_an_error_and_no_kill(
    repository: Path, small_disk
) -> None:
    disk = small_disk("size=300k")
    program = """
import sys
from cellseg_d2.export import label_tiff
label_tiff._PIXELS_IN_MEMORY = 0
try:
    writer = label_tiff.LabelWriter(label_tiff.Path(sys.argv[1]), (500, 500))
    writer._painter.finish()
except OSError as error:
    print("refused", error.errno)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(disk)], cwd=repository, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()) == (0, ["refused", "28"]), done.stderr


@pytest.mark.slow
def test_folders_that_cannot_be_written_to(
    data: Path, images: Path, predicted: tuple[Predict, Path], small_disk, capsys
) -> None:
    disk = small_disk("ro,size=100k")
    for command in (lambda: train(data, disk / "run"), lambda: predicted[0](images, disk / "out")):
        assert command() == 1
        error = last_line(capsys)
        assert error.startswith("error: ") and "Read-only file system" in error
        assert str(disk) in error
    assert not list(disk.iterdir())
