"""The kill test itself: it finds what a kill can do to runs that are not made for it."""

from __future__ import annotations

import importlib.util
import json
import random
import time
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image


@pytest.fixture
def tool(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "tools"))
    spec = importlib.util.spec_from_file_location("kill_tool", repository / "tools/kill_test.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(tool: ModuleType) -> ModuleType:
    import killing.files

    return killing.files


def write_all(folder: Path) -> list[Path]:
    torch.save({"model": {"w": torch.zeros(5)}}, folder / "model.pth")
    (folder / "scores.json").write_text(json.dumps({"a": 1}))
    (folder / "part.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    (folder / "config.yaml").write_text("A: [1, 2]")
    Image.new("RGB", (30, 30)).save(folder / "curves.png")
    tifffile.imwrite(folder / "class1.tif", np.ones((9, 9), np.uint16))
    with zipfile.ZipFile(folder / "results.zip", "w") as archive:
        archive.writestr("results.json", "[]")
    return sorted(folder.iterdir())


def test_whole_files_pass_and_halves_do_not(files: ModuleType, tmp_path: Path) -> None:
    for path in write_all(tmp_path):
        files.check(path)
        content = path.read_bytes()
        for half in (content[: len(content) * 3 // 4], b""):
            path.write_bytes(half)
            if path.suffix == ".jsonl" and not half:
                continue  # no line: an image without cells has one
            with pytest.raises(files.Difference, match=path.name):
                files.check(path)


def test_a_cut_last_row_of_metrics_is_left_out(files: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1}\n{"iteration": 3}\n{"iter')
    assert files.check(path) == [{"iteration": 1}, {"iteration": 3}]


def test_same_is_to_the_bit(files: ModuleType) -> None:
    a = {"w": [torch.tensor([1.0, 2.0]), float("nan")]}
    assert files.same(a, {"w": [torch.tensor([1.0, 2.0]), float("nan")]})
    assert not files.same(a, {"w": [torch.tensor([1.0, 2.0 + 1e-6]), float("nan")]})
    assert not files.same(a, {"v": a["w"]}) and not files.same(a, {"w": a["w"][:1]})


def work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def job(tool: ModuleType, step, inspect=lambda folder: None, compare=lambda folder: None):
    def start(folder: Path) -> int:
        folder.mkdir(exist_ok=True)
        return step(folder) or 0

    return tool.Job("fake", start, inspect, compare, seconds=0.3)


def steps_done(folder: Path) -> int:
    return len(list(folder.glob("step*")))


def test_a_run_that_goes_on_is_sound(tool: ModuleType, tmp_path: Path) -> None:
    def go_on(folder: Path) -> None:
        for step in range(5):
            if not (folder / f"step{step}").exists():
                work(0.05)
                (folder / f"step{step}").touch()

    def compare(folder: Path) -> None:
        if steps_done(folder) != 5:
            raise tool.Difference("not complete")

    sound = job(tool, go_on, steps_done, compare)
    runs, faults = tool.kill_again_and_again(sound, 4, random.Random(0), tmp_path)
    assert runs >= 1 and faults == []
    assert not list(tmp_path.glob("fake*/")), "what is sound is removed"


def test_a_run_that_loses_what_it_had_is_found(tool: ModuleType, tmp_path: Path) -> None:
    def begin_anew(folder: Path) -> None:
        lost = steps_done(folder) > 0
        for path in folder.glob("step*"):
            path.unlink()
        if not lost:
            (folder / "step0").touch()
        work(0.3)

    forgetful = job(tool, begin_anew, steps_done)
    _, faults = tool.kill_again_and_again(forgetful, 6, random.Random(1), tmp_path)
    assert faults and "saved up to iteration 1 became saved up to iteration 0" in faults[0]


def test_a_run_that_ends_otherwise_is_found(tool: ModuleType, tmp_path: Path) -> None:
    def append(folder: Path) -> None:
        with open(folder / "log", "a") as file:
            file.write("x")
        work(0.3)

    def compare(folder: Path) -> None:
        if (folder / "log").read_text() != "x":
            raise tool.Difference(f"{folder}: twice")

    repeating = job(tool, append, lambda folder: None, compare)
    runs, faults = tool.kill_again_and_again(repeating, 3, random.Random(0), tmp_path)
    assert faults and all("twice" in fault for fault in faults)


def test_a_run_that_fails_to_go_on_is_found(tool: ModuleType, tmp_path: Path) -> None:
    def fail(folder: Path) -> int:
        print("the reason")
        work(0.1)
        return 3

    failing = job(tool, fail)
    with pytest.raises(tool.Difference, match="status 3"):
        tool.run(failing, tmp_path / "fake")


def test_a_run_is_killed_after_so_much_work(tool: ModuleType, tmp_path: Path) -> None:
    def never_end(folder: Path) -> int:
        while True:
            work(0.1)

    killed, seconds = tool.run(job(tool, never_end), tmp_path / "endless", kill_after=0.03)
    assert killed and seconds >= 0.03


@pytest.mark.parametrize(
    ("arguments", "status"), [(["-h"], 0), (["--kills", "0"], 2), (["--no-such"], 2)]
)
def test_help_and_wrong_usage(tool: ModuleType, arguments: list[str], status: int) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.main(arguments)
    assert stop.value.code == status
