"""`visualize_data`, `visualize_json_results` and `plot_metrics`, from files to pictures.

Oracle: small data sets made by hand, whose cells' colours are looked for in the pictures.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pycocotools.mask as mask_util
import pytest
import tifffile
from PIL import Image

from cellseg_d2.visualization.colors import CLASS_PALETTE

SIZE = (60, 80)
OPAQUE = ["--alpha", "1", "--labels", "none", "--no-boxes", "--outline-width", "0", "--scale", "1"]

WRONG = [
    "--alpha=2",
    "--limit=0",
    "--scale=0",
    "--outline-width=-1",
    "--recipe=report9",
    "--draws=0",
]


def load(repository: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, repository / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images: cells of class 2 and 3, of class 2, and none; the files are BGR."""
    label_maps = {2: np.zeros(SIZE), 3: np.zeros(SIZE)}
    label_maps[2][10:30, 10:30], label_maps[2][40:50, 50:70] = 3, 9
    label_maps[3][35:45, 5:15] = 10
    for name, classes in (("a", (2, 3)), ("b", (2,)), ("empty", ())):
        folder = tmp_path / "data" / "train" / name
        folder.mkdir(parents=True)
        image = np.full((*SIZE, 3), (220, 180, 200), np.uint8)
        tifffile.imwrite(folder / "image.tif", image, photometric="rgb")
        for k in classes:
            tifffile.imwrite(folder / f"class{k}.tif", label_maps[k])
    test = tmp_path / "data" / "test_release"
    test.mkdir()
    tifffile.imwrite(test / "t.tif", np.full((*SIZE, 3), 200, np.uint8), photometric="rgb")
    return tmp_path / "data"


def overlay(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "overlays" / f"{name}.png"))


def count(picture: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((picture[: SIZE[0]] == color).all(axis=2).sum())


class TestVisualizeData:
    @pytest.fixture
    def tool(self, repository: Path) -> ModuleType:
        return load(repository, "visualize_data")

    def test_every_image_has_its_overlay(
        self, tool: ModuleType, root: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        arguments = ["--root", str(root), "--output", str(out), "--channel-order", "BGR", *OPAQUE]
        assert tool.main(arguments) == 0
        assert sorted(path.name for path in (out / "overlays").iterdir()) == [
            "a.png",
            "b.png",
            "empty.png",
        ]
        for name, area in (("a", 600), ("b", 600), ("empty", 0)):
            assert count(overlay(out, name), CLASS_PALETTE[1]) == area
        assert count(overlay(out, "a"), CLASS_PALETTE[2]) == 100
        # What the file holds as blue, green, red is shown as red, green, blue.
        assert count(overlay(out, "empty"), (200, 180, 220)) == SIZE[0] * SIZE[1]
        assert Image.open(out / "sheet.png").width > 800

    def test_options_are_heeded(self, tool: ModuleType, root: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        arguments = ["--root", str(root), "--output", str(out), "--limit", "1", "--scale", "2"]
        assert tool.main([*arguments, "--min-area", "300", "--class-names", "x", "y", "z"]) == 0
        assert [path.name for path in (out / "overlays").iterdir()] == ["a.png"]
        assert overlay(out, "a").shape[0] > 2 * SIZE[0]

    def test_a_recipe_has_a_sheet_for_each_image(
        self, tool: ModuleType, root: Path, tmp_path: Path
    ) -> None:
        sheets = []
        for seed in "112":
            out = tmp_path / f"out{len(sheets)}"
            arguments = ["--root", str(root), "--output", str(out), "--draws", "2", "--limit", "2"]
            assert tool.main([*arguments, "--recipe", "report1", "--seed", seed]) == 0
            folder = out / "recipes" / "report1"
            assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png"]
            assert not (out / "overlays").exists()
            sheets.append((folder / "a.png").read_bytes())
        assert sheets[0] == sheets[1] != sheets[2]

    def test_test_images_are_drawn_bare(self, tool: ModuleType, root: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        arguments = ["--root", str(root), "--output", str(out), "--split", "test", "--scale", "1"]
        assert tool.main(arguments) == 0
        assert count(overlay(out, "t"), (200, 200, 200)) == SIZE[0] * SIZE[1]

    def test_faulty_data_exits_with_1(
        self, tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        assert tool.main(["--root", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
        assert str(tmp_path) in capsys.readouterr().err

    @pytest.mark.parametrize("wrong", WRONG)
    def test_wrong_usage_exits_with_2(self, tool: ModuleType, wrong: str) -> None:
        with pytest.raises(SystemExit) as caught:
            tool.main(["--root", ".", "--output", "out", wrong])
        assert caught.value.code == 2


class TestVisualizeJsonResults:
    @pytest.fixture
    def tool(self, repository: Path) -> ModuleType:
        return load(repository, "visualize_json_results")

    @pytest.fixture
    def images(self, tmp_path: Path) -> Path:
        folder = tmp_path / "images"
        folder.mkdir()
        for name in "ab":
            tifffile.imwrite(folder / f"{name}.tif", np.full((*SIZE, 3), 200, np.uint8))
        return folder

    def write(self, tmp_path: Path, *scores_and_ids: tuple[float, int]) -> Path:
        mask = np.zeros(SIZE, np.uint8, order="F")
        mask[10:30, 10:30] = 1
        counts = mask_util.encode(mask)["counts"].decode()
        entries = [
            {
                "image_id": image_id,
                "bbox": [10, 10, 20, 20],
                "score": score,
                "category_id": 4,
                "segmentation": {"size": list(SIZE), "counts": counts},
            }
            for score, image_id in scores_and_ids
        ]
        path = tmp_path / "predictions.json"
        path.write_text(json.dumps(entries))
        return path

    def arguments(self, predictions: Path, images: Path, out: Path) -> list[str]:
        chosen = ["--predictions", predictions, "--images", images, "--output", out]
        return [*map(str, chosen), *OPAQUE]

    def test_predictions_above_the_threshold_are_drawn(
        self, tool: ModuleType, images: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        predictions = self.write(tmp_path, (0.9, 1), (0.4, 2))
        assert tool.main(self.arguments(predictions, images, out)) == 0
        assert count(overlay(out, "a"), CLASS_PALETTE[3]) == 400
        assert count(overlay(out, "b"), CLASS_PALETTE[3]) == 0
        assert (out / "sheet.png").exists()
        chosen = [*self.arguments(predictions, images, out), "--score-threshold", "0.3"]
        assert tool.main(chosen) == 0
        assert count(overlay(out, "b"), CLASS_PALETTE[3]) == 400
        with pytest.raises(SystemExit) as stop:
            tool.main([*chosen[:-1], "50"])
        assert stop.value.code == 2

    def test_the_id_map_names_the_images(
        self, tool: ModuleType, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        id_map = tmp_path / "ids.json"
        entry = {"file_name": "b.tif", "id": 7, "height": SIZE[0], "width": SIZE[1]}
        id_map.write_text(json.dumps([entry, {**entry, "file_name": "gone.tif", "id": 8}]))
        out = tmp_path / "out"
        arguments = self.arguments(self.write(tmp_path, (0.9, 7), (0.9, 8)), images, out)
        assert tool.main([*arguments, "--id-map", str(id_map)]) == 0
        assert f"warning: not in {images}: gone" in capsys.readouterr().err
        assert [path.name for path in (out / "overlays").iterdir()] == ["b.png"]
        assert count(overlay(out, "b"), CLASS_PALETTE[3]) == 400

    def test_faulty_predictions_are_left_out_and_reported(
        self, tool: ModuleType, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        out = tmp_path / "out"
        predictions = self.write(tmp_path, (0.9, 1), (7.0, 1), (0.9, 55))
        assert tool.main(self.arguments(predictions, images, out)) == 1
        assert "2 predictions have faults" in capsys.readouterr().err
        assert count(overlay(out, "a"), CLASS_PALETTE[3]) == 400

    def test_an_unreadable_image_does_not_stop_the_others(
        self, tool: ModuleType, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        (images / "a.tif").write_bytes(b"II*\0 no image")
        out = tmp_path / "out"
        predictions = self.write(tmp_path, (0.9, 2))
        assert tool.main(self.arguments(predictions, images, out)) == 1
        assert "a.tif" in capsys.readouterr().err
        assert count(overlay(out, "b"), CLASS_PALETTE[3]) == 400

    def test_a_file_that_is_no_submission_exits_with_1(
        self, tool: ModuleType, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        path = tmp_path / "predictions.json"
        path.write_text("oops")
        assert tool.main(self.arguments(path, images, tmp_path / "out")) == 1
        assert "predictions.json" in capsys.readouterr().err

    def test_wrong_usage_exits_with_2(self, tool: ModuleType, tmp_path: Path) -> None:
        with pytest.raises(SystemExit) as caught:
            tool.main(self.arguments(tmp_path / "missing.json", tmp_path, tmp_path))
        assert caught.value.code == 2


class TestPlotMetrics:
    @pytest.fixture
    def tool(self, repository: Path) -> ModuleType:
        return load(repository, "plot_metrics")

    def test_runs_are_named_by_their_folders(self, tool: ModuleType, tmp_path: Path) -> None:
        runs = [tmp_path / name for name in ("x/sgd", "y/adamw", "z/sgd")]
        for run in runs:
            run.mkdir(parents=True)
            (run / "metrics.json").write_text('{"iteration": 19, "total_loss": 2}\n')
        labels = tool.label_runs([runs[0], runs[1] / "metrics.json"])
        assert list(labels.items()) == [
            ("sgd", runs[0] / "metrics.json"),
            ("adamw", runs[1] / "metrics.json"),
        ]
        assert len(tool.label_runs(runs)) == 3
        picture = tmp_path / "curves.png"
        assert tool.main(["--output", str(picture), *map(str, runs)]) == 0
        assert Image.open(picture).width > 500

    def test_a_folder_without_metrics_exits_with_1(
        self, tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        assert tool.main(["--output", str(tmp_path / "c.png"), str(tmp_path)]) == 1
        assert "metrics.json" in capsys.readouterr().err

    def test_wrong_usage_exits_with_2(self, tool: ModuleType) -> None:
        with pytest.raises(SystemExit) as caught:
            tool.main([])
        assert caught.value.code == 2
