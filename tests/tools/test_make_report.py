"""Runs of a command line: from a run's folder to a page, and what goes wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from ..visualization.report.runs import make_run


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    path = repository / "tools" / "make_report.py"
    spec = importlib.util.spec_from_file_location("make_report", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("report"), repository)


def test_the_page_goes_into_the_run(tool: ModuleType, run: Path, capsys) -> None:
    assert tool.main(["--run", str(run)]) == 0
    page = run / "report.html"
    assert capsys.readouterr().out.strip() == str(page)
    assert page.read_text("utf-8").count('<article class="picture"') == 5  # all there are


def test_options_are_heeded(tool: ModuleType, run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    options = ["--output", str(page), "--limit", "1", "--dataset", "cells_trainval"]
    assert tool.main(["--run", str(run), *options, "SEED", "3"]) == 0
    assert page.read_text("utf-8").count('<article class="picture"') == 1


def test_a_missing_evaluation_is_an_error_with_a_command(
    tool: ModuleType, tmp_path: Path, run: Path, capsys
) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    assert tool.main(["--run", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "--eval-only" in error
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("options", [[], ["--run", "x", "--limit", "0"], ["--run", "x", "-y"]])
def test_wrong_usage_exits_with_2(tool: ModuleType, options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        tool.main(options)
    assert caught.value.code == 2


def test_an_unknown_key_exits_with_2(tool: ModuleType, run: Path, capsys) -> None:
    assert tool.main(["--run", str(run), "NO.SUCH.KEY", "1"]) == 2
    assert "NO.SUCH.KEY" in capsys.readouterr().err
