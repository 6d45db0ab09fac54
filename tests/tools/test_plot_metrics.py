"""Runs of a command line: how they are called, and what goes wrong."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "plot_metrics", repository / "tools" / "plot_metrics.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_folder(path: Path, loss: float = 1.0) -> Path:
    path.mkdir(parents=True)
    record = {"iteration": 19, "total_loss": loss, "val/total_loss": loss, "lr": 0.1}
    (path / "metrics.json").write_text(json.dumps(record) + "\n")
    return path


def test_runs_are_called_by_their_folders(tool: ModuleType, tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "x" / "run"), run_folder(tmp_path / "y" / "run")
    c = run_folder(tmp_path / "c")
    assert list(tool.label_runs([a, c])) == ["run", "c"]
    assert list(tool.label_runs([a, b / "metrics.json"])) == ["x/run", "y/run"]
    assert tool.label_runs([a, b], ["SGD", "AdamW"]) == {
        "SGD": a / "metrics.json",
        "AdamW": b / "metrics.json",
    }


def test_several_runs_become_one_picture(tool: ModuleType, tmp_path: Path, capsys) -> None:
    runs = [str(run_folder(tmp_path / name)) for name in ("a", "b")]
    picture = tmp_path / "out" / "curves.png"
    assert tool.main([*runs, "--output", str(picture), "--names", "SGD", "AdamW"]) == 0
    assert Image.open(picture).size[0] > 1000
    assert capsys.readouterr().out.strip() == str(picture)


def test_a_run_without_metrics_is_an_error(tool: ModuleType, tmp_path: Path, capsys) -> None:
    assert tool.main([str(tmp_path), "--output", str(tmp_path / "curves.png")]) == 1
    assert "metrics.json" in capsys.readouterr().err


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "b", "c"]])
def test_each_run_needs_a_name_of_its_own(tool: ModuleType, tmp_path: Path, names) -> None:
    runs = [str(tmp_path / "x"), str(tmp_path / "y")]
    with pytest.raises(SystemExit) as caught:
        tool.main([*runs, "--output", "curves.png", "--names", *names])
    assert caught.value.code == 2
