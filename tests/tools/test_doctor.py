"""The command's lines, and how it ends."""

from __future__ import annotations

import builtins
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cellseg_d2 import doctor
from cellseg_d2.doctor import OK, WARNING, WRONG, Finding


@pytest.fixture
def tool(repository: Path) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("doctor_tool", repository / "tools" / "doctor.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with warnings.catch_warnings():
        yield module
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("level", "status", "count"),
    [
        (OK, 0, "2 ok, 0 warnings, 0 wrong"),
        (WARNING, 0, "1 ok, 1 warnings, 0 wrong"),
        (WRONG, 1, "1 ok, 0 warnings, 1 wrong"),
    ],
)
def test_the_worst_finding_decides(tool, level, status, count, monkeypatch, capsys) -> None:
    findings = [Finding(OK, "torch", "2.11.0"), Finding(level, "disk", "3 GiB", "make room")]
    asked = []
    monkeypatch.setattr(doctor, "examine", lambda *args: asked.append(args) or iter(findings))
    assert tool.main(["--root", "cells", "--output", "run"]) == status
    assert asked == [(Path("cells"), Path("run"))]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == count and lines[1].split() == [level, "disk", "3", "GiB"]
    assert lines[2].strip() == "-> make room"


def test_this_machine_passes(tool, repository: Path, tmp_path: Path, capsys) -> None:
    assert tool.main(["--output", str(tmp_path)]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    for name in ("torch", "Detectron2", "GPU", "disk", "trial"):
        assert any(line.split()[1:2] == [name] for line in out.splitlines()), name
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_the_first_thing_told(tool, monkeypatch, capsys) -> None:
    importer = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "cellseg_d2.doctor":
            raise ModuleNotFoundError("No module named 'detectron2'")
        return importer(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert tool.main([]) == 1
    out = capsys.readouterr().out
    assert out.startswith("wrong") and "detectron2" in out and "make setup" in out


@pytest.mark.parametrize(("arguments", "status"), [(["-h"], 0), (["--roots", "x"], 2)])
def test_help_and_wrong_usage(tool, arguments: list[str], status: int) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.main(arguments)
    assert stop.value.code == status
