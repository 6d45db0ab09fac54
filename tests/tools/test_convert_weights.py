"""The command: a file converted, its report, and the exit statuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from cellseg_d2.checkpoint import load_arrays


def run(repository: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, repository / "tools" / "convert_weights.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(repository)},
        timeout=120,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet18().state_dict(), path)
    return path


def test_converts_and_reports(repository: Path, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "weights" / "R-18.pkl"
    result = run(repository, "--input", source, "--output", target)
    assert result.returncode == 0, result.stderr
    assert "kind resnet: 122 arrays in the file" in result.stdout
    assert "100 renamed" in result.stdout and "22 left" in result.stdout
    assert "  fc.weight (1)" in result.stdout
    assert result.stdout.endswith(f"written: {target}\n")
    weights = load_arrays(target)["model"]
    assert len(weights) == 100
    expected = torch.load(source)["layer3.1.conv2.weight"]
    assert torch.equal(torch.from_numpy(weights["res4.1.conv2.weight"]), expected)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"--kind": "detector"}, 1, "parameters that kind detector does not know"),
        ({"--input": "no.pth"}, 1, "no.pth"),
        ({"--output": "weights.pth"}, 2, "its name ends in .pkl"),
        ({"--kind": "vgg"}, 2, "invalid choice"),
        ({"--epsilon": "-1"}, 2, "--epsilon is negative"),
    ],
)
def test_refuses(repository: Path, source: Path, tmp_path: Path, options, status, message) -> None:
    values = {"--input": source, "--output": tmp_path / "a.pkl"} | options
    result = run(repository, *(word for pair in values.items() for word in pair))
    assert result.returncode == status
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
