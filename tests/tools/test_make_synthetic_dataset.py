"""The command line: exit status, what it prints, and that running it again does nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cellseg_d2.data import read_image

SMALL = ["--train", "2", "--test", "1", "--size", "50", "70", "--cells", "2", "5"]


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_synthetic_dataset", repository / "tools" / "make_synthetic_dataset.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_makes_a_data_set_once(tool, tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "new" / "set"), *SMALL]
    assert tool.main(arguments) == 0
    assert "3 of 3 images written" in capsys.readouterr().out
    assert len(list((tmp_path / "new" / "set" / "train").iterdir())) == 2
    assert tool.main(arguments) == 0
    assert "already there" in capsys.readouterr().out


def test_other_parameters_are_refused_with_advice(tool, tmp_path, capsys):
    arguments = ["--output", str(tmp_path), *SMALL]
    assert tool.main(arguments) == 0
    assert tool.main([*arguments, "--seed", "1"]) == 1
    error = capsys.readouterr().err
    assert "seed 0" in error and "choose another output folder" in error


def test_a_folder_that_is_a_file_is_refused(tool, tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text("")
    assert tool.main(["--output", str(path), *SMALL]) == 1
    assert str(path) in capsys.readouterr().err


def test_options_reach_the_parameters(tool):
    output, parameters = tool.parse_args(
        ["--output", "somewhere", "--empty", "2", "--scale", "0.5", "--seed", "7", "--test-labels"]
        + ["--class-weights", "1", "0", "2", "0", "--overlap", "0.1", *SMALL]
    )
    assert output == Path("somewhere")
    assert parameters == tool.SyntheticParameters(
        train=2,
        test=1,
        size=(50, 70),
        cells=(2, 5),
        scale=0.5,
        seed=7,
        empty=2,
        class_weights=(1.0, 0.0, 2.0, 0.0),
        overlap=0.1,
        test_labels=True,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--output", "x", "--size", "10", "5"],
        ["--output", "x", "--train", "many"],
        ["--output", "x", "--empty", "99"],
        ["--output", "x", "--class-weights", "0", "0", "0", "0"],
        ["--output", "x", "--nonsense"],
    ],
)
def test_wrong_usage_ends_with_2(tool, arguments, capsys):
    with pytest.raises(SystemExit) as end:
        tool.main(arguments)
    assert end.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help(tool, capsys):
    with pytest.raises(SystemExit) as end:
        tool.main(["-h"])
    assert end.value.code == 0
    assert "--test-labels" in capsys.readouterr().out


def test_writes_a_slide(tool, tmp_path, capsys):
    path = tmp_path / "slide.tif"
    assert tool.main(["--output", str(path), "--slide", "300", "500", "--seed", "3"]) == 0
    assert "300×500" in capsys.readouterr().out
    assert read_image(path).shape == (300, 500, 3)
    with pytest.raises(SystemExit) as stopped:
        tool.main(["--output", str(path), "--slide", "0", "500"])
    assert stopped.value.code == 2
    assert tool.main(["--output", str(tmp_path / "slide.tif" / "x.tif"), "--slide", "9", "9"]) == 1
