import importlib.util
import json

import numpy as np
import pytest
import tifffile


@pytest.fixture(scope="module")
def tool(repository):
    path = repository / "tools" / "inspect_dataset.py"
    spec = importlib.util.spec_from_file_location("inspect_dataset", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    for name, value in (("a", 10), ("b", 30)):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        image = np.zeros((20, 24, 3), np.uint8)
        image[..., 0] = value
        tifffile.imwrite(folder / "image.tif", image, photometric="rgb")
        label_map = np.zeros((20, 24), np.float64)
        label_map[2:6, 2:6], label_map[8, 8] = 7, 9
        tifffile.imwrite(folder / "class2.tif", label_map)
    return root


def test_sound_data(tool, root, tmp_path, capsys):
    png, figures = tmp_path / "new/figure.png", tmp_path / "new/figures.json"
    assert tool.main(["--root", str(root), "--png", str(png), "--json", str(figures)]) == 0
    output = capsys.readouterr().out
    assert "Annotated images   2" in output and output.endswith("Faults             0\n")
    summary = json.loads(figures.read_text())
    assert summary["channel_mean"] == [20.0, 0.0, 0.0] and summary["channel_std"] == [10.0, 0, 0]
    assert [row["instances"] for row in summary["classes"]] == [0, 4, 0, 0]
    assert png.read_bytes().startswith(b"\x89PNG")


def test_options(tool, root, tmp_path):
    figures = tmp_path / "figures.json"
    options = "--channel-order BGR --min-area 2 --num-classes 2 --instances components"
    assert tool.main(["--root", str(root), "--json", str(figures), *options.split()]) == 0
    summary = json.loads(figures.read_text())
    assert summary["channel_mean"] == [0.0, 0.0, 20.0]
    assert [row["instances"] for row in summary["classes"]] == [0, 2]
    assert summary["all"]["dropped"] == 2


def test_faults(tool, root, tmp_path, capsys):
    tifffile.imwrite(root / "train/a/class1.tif", np.zeros((3, 3), np.uint8))
    assert tool.main(["--root", str(root), "--png", str(tmp_path / "f.png")]) == 1
    output = capsys.readouterr().out
    assert "Annotated images   1" in output and "Faults             1\n" in output
    assert f"{root}/train/a/class1.tif: found" in output
    assert (tmp_path / "f.png").exists()


def test_nothing_sound(tool, root, tmp_path, capsys):
    for name in "ab":
        (root / "train" / name / "image.tif").write_bytes(b"")
    assert tool.main(["--root", str(root), "--png", str(tmp_path / "f.png")]) == 1
    captured = capsys.readouterr()
    assert "Faults             2\n" in captured.out and "not drawn" in captured.err
    assert not (tmp_path / "f.png").exists()


def test_root_that_is_none(tool, tmp_path, capsys):
    assert tool.main(["--root", str(tmp_path / "gone")]) == 1
    assert "check the path" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--root", ".", "--min-area", "0"],
        ["--root", ".", "--num-classes", "x"],
        ["--root", ".", "--channel-order", "GRB"],
        ["--root", ".", "--unknown"],
    ],
)
def test_wrong_usage(tool, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help(tool, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main(["-h"])
    assert caught.value.code == 0
    assert "--channel-order" in capsys.readouterr().out
