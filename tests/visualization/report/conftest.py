"""A run to report on, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellseg_d2.visualization.report.page import render_report
from cellseg_d2.visualization.report.sources import RunSources, read_run

from .runs import make_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("report"), repository)


@pytest.fixture
def run(run_folder: Path) -> RunSources:
    # Read each time: data sets are registered by name, and other tests register theirs.
    return read_run(run_folder)


@pytest.fixture(scope="session")
def page(run_folder: Path) -> str:
    return render_report(read_run(run_folder), limit=4)
