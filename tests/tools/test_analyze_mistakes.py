"""Runs of a command line: tables and a picture of a run, and what goes wrong."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from ..visualization.report.runs import CLASSES, make_run


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    path = repository / "tools" / "analyze_mistakes.py"
    spec = importlib.util.spec_from_file_location("analyze_mistakes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("mistakes"), repository)


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in lines}


def test_the_tables_add_up_to_the_evaluation(tool: ModuleType, run: Path, capsys) -> None:
    assert tool.main(["--run", str(run)]) == 0
    text = (run / "mistakes" / "mistakes.md").read_text("utf-8")
    assert text in capsys.readouterr().out
    folder = run / "evaluation" / "cells_trainval"
    images = json.loads((folder / "evaluation_details.json").read_text())["images"]
    tp, fp, fn = (sum(image[key] for image in images) for key in ("TP", "FP", "FN"))
    table = rows(text)
    assert table["all"][0] == str(tp + fn)
    assert table["all"][1:3] == [f"{100 * tp / (tp + fn):.1f}", f"{100 * tp / (tp + fp):.1f}"]
    by_class = sum(int(table[name][0]) for name in CLASSES)
    by_image = sum(int(table[image["name"]][0]) for image in images)
    assert by_class == by_image == tp + fn
    with Image.open(run / "mistakes" / "mistakes.png") as picture:
        assert picture.width > 800


def test_runs_are_put_together(tool: ModuleType, run: Path, tmp_path: Path) -> None:
    assert tool.main(["--run", str(run), "--output", str(tmp_path / "one")]) == 0
    twice = ["--run", str(run), "--run", str(run), "--output", str(tmp_path / "two"), "SEED", "3"]
    assert tool.main(twice) == 0
    one, two = (rows((tmp_path / d / "mistakes.md").read_text("utf-8")) for d in ("one", "two"))
    for name in ("all", *CLASSES):
        assert int(two[name][0]) == 2 * int(one[name][0])
        assert two[name][1:] == one[name][1:]


def test_without_a_mistake_there_is_no_picture(
    tool: ModuleType, run: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(tool, "choose_mistakes", lambda *_: [])
    (tmp_path / "mistakes.png").write_bytes(b"of another run")
    assert tool.main(["--run", str(run), "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith(f"Wrote {tmp_path / 'mistakes.md'}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["mistakes.md"]


def test_faults_end_with_a_command(
    tool: ModuleType, run: Path, tmp_path: Path, repository: Path, capsys
) -> None:
    assert tool.main(["--run", str(tmp_path)]) == 1
    assert "config.yaml" in capsys.readouterr().err
    assert tool.main(["--run", str(run), "NO.SUCH.KEY", "1"]) == 2
    plain = make_run(tmp_path, repository, panoptic=False)
    capsys.readouterr()
    assert tool.main(["--run", str(plain)]) == 1
    assert "TEST.PANOPTIC.ENABLED True" in capsys.readouterr().err
    assert not (plain / "mistakes").exists()
    with pytest.raises(SystemExit) as caught:
        tool.main([])
    assert caught.value.code == 2
