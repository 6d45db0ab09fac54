"""Oracle: files whose faults are known, and the exit status stated in the help."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pycocotools.mask as mask_util
import pytest


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    path = repository / "tools" / "validate_submission.py"
    spec = importlib.util.spec_from_file_location("validate_submission", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    rle = mask_util.encode(np.ones((6, 8), np.uint8, order="F"))
    entries = [
        {
            "image_id": image_id,
            "bbox": [0, 0, 8, 6],
            "score": score,
            "category_id": 1,
            "segmentation": {"size": [6, 8], "counts": rle["counts"].decode()},
        }
        for image_id, score in ((1, 0.25), (2, 0.997))
    ]
    path = tmp_path / "test-results.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture
def id_map(tmp_path: Path) -> Path:
    path = tmp_path / "ids.json"
    entries = [{"file_name": f"{k}.tif", "id": k, "height": 6, "width": 8} for k in (1, 2, 3)]
    path.write_text(json.dumps(entries))
    return path


def test_the_figures_are_printed(
    tool: ModuleType, predictions: Path, capsys: pytest.CaptureFixture
) -> None:
    assert tool.main(["--predictions", str(predictions)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Total predictions: 2",
        "Unique image IDs: 2",
        "Unique category IDs: [1]",
        "Score range: [0.250, 0.997]",
        "0 faults found",
    ]


def test_every_fault_is_printed(
    tool: ModuleType, predictions: Path, capsys: pytest.CaptureFixture
) -> None:
    entries = json.loads(predictions.read_text()) * 100
    for entry in entries:
        entry["score"] = 7
    predictions.write_text(json.dumps(entries))
    assert tool.main(["--predictions", str(predictions)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("fault: prediction ") for line in lines) == 200
    assert lines[-1] == "200 faults found"


def test_missing_images_are_a_fault_only_if_all_are_required(
    tool: ModuleType, predictions: Path, id_map: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--predictions", str(predictions), "--id-map", str(id_map)]
    assert tool.main(arguments) == 0
    assert "warning: 1 of 3 images have no predictions: ids 3" in capsys.readouterr().out
    assert tool.main([*arguments, "--require-all"]) == 1
    assert "fault: image 3: no predictions" in capsys.readouterr().out


def test_a_broken_id_map_is_a_fault(
    tool: ModuleType, predictions: Path, id_map: Path, capsys: pytest.CaptureFixture
) -> None:
    id_map.write_text("{")
    assert tool.main(["--predictions", str(predictions), "--id-map", str(id_map)]) == 1
    assert "ids.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--id-map", "missing.json"],
        ["--images", "missing"],
        ["--num-classes", "0"],
        ["--require-all"],
    ],
)
def test_wrong_usage_exits_with_2(tool: ModuleType, predictions: Path, more: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        tool.main(["--predictions", str(predictions), *more])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        tool.main(["--predictions", str(predictions.parent)])
    assert caught.value.code == 2
