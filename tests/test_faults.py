"""Faults in the middle of runs: kills, full and read-only disks, files that go, dead workers.

Oracle: the same run without the fault.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

import predict
import train_net
from cellseg_d2 import load_config
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset
from cellseg_d2.engine import CellTrainer
from cellseg_d2.export import folder

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "mask_rcnn_R_18_FPN_small.yaml"
TINY = [
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "20"),
    *("MODEL.DEVICE", "cpu", "INPUT.CELL.CHANNEL_ORDER", "BGR", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.CROP.SIZE", "[48, 48]", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_EPOCHS", "0"),
    *("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "DATASETS.TEST", "()"),
]
FILES = ["--labels", "--geojson", "--csv", "--overlay", "--score-threshold", "0"]


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


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write_dataset(folder, SyntheticParameters(train=4, test=4, size=(56, 64), cells=(3, 6)))
    return folder


def train(data: Path, output: Path, *options: str) -> int:
    common = ["DATASETS.CELL.ROOT", str(data), "OUTPUT_DIR", str(output), *TINY]
    return train_net.run(["--config-file", str(CONFIG), "--resume", *common, *options])


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory) -> Path:
    """The folder of a training without a fault."""
    folder = tmp_path_factory.mktemp("trained")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert train(data, folder) == 0
    torch.set_num_threads(threads)
    return folder


def assert_same_training(folder: Path, trained: Path) -> None:
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    weights = [torch.load(path / "model_final.pth")["model"] for path in (folder, trained)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not list(folder.rglob("*.part"))


Predict = Callable[..., int]


@pytest.fixture(scope="module")
def images(data: Path) -> Path:
    return data / "test_release"


@pytest.fixture(scope="module")
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


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def last_line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to let any file grow beyond a size, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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


# ------------------------------------------------------------------------------------- kills


@pytest.mark.slow
def test_killed_runs_end_as_those_that_were_not(repository: Path) -> None:
    script = repository / "tools" / "kill_test.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", "5", "--seed", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert re.search(r"^training: 3 kills in \d+ runs, 0 faults$", done.stdout, re.MULTILINE)
    assert re.search(r"^prediction: 2 kills in \d+ runs, 0 faults$", done.stdout, re.MULTILINE)


# ------------------------------------------------------------------------------------- disks


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


# ------------------------------------------------------------------------------------- files


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


# ----------------------------------------------------------------------- processes and memory


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
