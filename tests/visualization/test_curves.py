"""Oracle: what matplotlib is told to draw, and that the picture holds it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from PIL import Image

from cellseg_d2.errors import CellDataError
from cellseg_d2.visualization.curves import plot_metrics


def training(folder: Path, *, epoch_length: int | None = 20, evaluated: bool = True) -> Path:
    folder.mkdir(parents=True)
    with (folder / "metrics.json").open("w") as file:
        for i in range(9, 100, 10):
            record: dict[str, Any] = {
                "iteration": i,
                "total_loss": 3 - i / 50,
                "loss_mask": 1 - i / 200,
                "loss_cls": 0.8,
                "lr": 1e-4,
                "time": 0.3,
            }
            if epoch_length:
                record["epoch"] = (i + 1) / epoch_length
            file.write(json.dumps(record) + "\n")
        if evaluated:
            for i in (49, 99):
                record = {"segm/AP": 20.0, "segm/AP50": 45.0, "segm/AP75": 15.0, "segm/APs": 1.0}
                record |= {"segm/AP-class1": 30.0, "segm/AP-class2": float("nan")}
                record |= {"iteration": i, "val/total_loss": 2.0, "bbox/AP": 3.0}
                file.write(json.dumps(record) + "\n")
    return folder / "metrics.json"


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Axes]:
    """The panels drawn, by their titles."""
    drawn: dict[str, Axes] = {}
    set_title = Axes.set_title

    def record(axes: Axes, title: str, **options: Any) -> Any:
        drawn[title] = axes
        return set_title(axes, title, **options)

    monkeypatch.setattr(Axes, "set_title", record)
    return drawn


def legend_of(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_one_run_has_all_panels(tmp_path: Path, panels: dict[str, Axes]) -> None:
    path = plot_metrics({"a": training(tmp_path / "a")}, tmp_path / "new" / "curves.png")
    assert {title: legend_of(axes) for title, axes in panels.items()} == {
        "Total loss": ["training", "validation"],
        "Training loss by part": ["loss_mask", "loss_cls"],
        "Learning rate": [],
        "Mask AP, validation": ["AP", "AP50", "AP75"],
        "Mask AP by class, validation": ["class1", "class2"],
    }
    line = panels["Total loss"].get_lines()[0]
    assert line.get_xdata().tolist() == list(range(9, 100, 10))
    assert line.get_ydata().tolist() == [3 - i / 50 for i in range(9, 100, 10)]
    picture = np.asarray(Image.open(path))
    assert picture.shape[2] == 3 and picture.std() > 10


def test_several_runs_are_told_apart(tmp_path: Path, panels: dict[str, Axes]) -> None:
    runs = {name: training(tmp_path / name) for name in ("sgd", "adamw")}
    plot_metrics(runs, tmp_path / "curves.png")
    assert legend_of(panels["Learning rate"]) == ["sgd", "adamw"]
    # Colours are the runs and styles the losses; in the other panels it is the other way round.
    assert legend_of(panels["Total loss"]) == ["sgd", "adamw", "training", "validation"]
    assert legend_of(panels["Mask AP, validation"]) == ["AP", "AP50", "AP75", "sgd", "adamw"]
    for axes in panels.values():
        looks = [(line.get_color(), line.get_linestyle()) for line in axes.get_lines()]
        assert len(set(looks)) == len(looks)


def test_twelve_losses_are_told_apart(tmp_path: Path, panels: dict[str, Axes]) -> None:
    """As many as a cascade with PointRend and centre and boundary maps has."""
    parts = [f"{part}_stage{stage}" for part in ("loss_cls", "loss_box_reg") for stage in range(3)]
    parts += ["loss_mask", "loss_mask_point", "loss_rpn_cls", "loss_rpn_loc"]
    parts += ["loss_center", "loss_boundary"]
    metrics = tmp_path / "metrics.json"
    records = [{"iteration": i, **dict.fromkeys(parts, 1.0 + i)} for i in (9, 19)]
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    plot_metrics({"a": metrics}, tmp_path / "curves.png")
    lines = panels["Training loss by part"].get_lines()
    assert len(lines) == len({line.get_color() for line in lines}) == 12


def test_a_legend_does_not_hide_the_only_evaluation(
    tmp_path: Path, panels: dict[str, Axes]
) -> None:
    metrics = tmp_path / "metrics.json"
    records = [{"iteration": i, "lr": 0.1} for i in (19, 6639)]
    # The highest dot lies above matplotlib's first choice of a corner, by less than its radius.
    records.append({"iteration": 6659, "segm/AP": 32.0, "segm/AP50": 49.2, "segm/AP75": 33.4})
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    plot_metrics({"a": metrics}, tmp_path / "curves.png")
    axes = panels["Mask AP, validation"]
    frame = axes.get_legend().get_window_extent()
    for line in axes.get_lines():
        center = axes.transData.transform(np.column_stack(line.get_data()))
        radius = line.get_markersize() / 2 / 72 * axes.figure.dpi
        for x, y in center:
            assert not frame.overlaps(Bbox([[x - radius, y - radius], [x + radius, y + radius]]))


def test_panels_without_data_are_left_out(tmp_path: Path, panels: dict[str, Axes]) -> None:
    plot_metrics({"a": training(tmp_path / "a", evaluated=False)}, tmp_path / "curves.png")
    assert list(panels) == ["Total loss", "Learning rate", "Training loss by part"]


def test_metrics_of_a_named_data_set_are_found(tmp_path: Path, panels: dict[str, Axes]) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 9, "cells_val/segm/AP50": 40}\n')
    plot_metrics({"a": path}, tmp_path / "curves.png")
    (line,) = panels["Mask AP, validation"].get_lines()
    assert line.get_ydata().tolist() == [40.0]


def test_losses_on_several_validation_sets_are_drawn(
    tmp_path: Path, panels: dict[str, Axes]
) -> None:
    path = tmp_path / "metrics.json"
    record = {"iteration": 9, "total_loss": 3, "a/val/total_loss": 1, "b/val/total_loss": 2}
    path.write_text(json.dumps(record | {"a/val/loss_mask": 4, "b/val/loss_mask": 5}) + "\n")
    plot_metrics({"run": path}, tmp_path / "curves.png")
    assert legend_of(panels["Total loss"]) == ["training", "validation, a", "validation, b"]
    losses = panels["Validation loss by part"].get_lines()
    assert {line.get_label(): line.get_ydata().tolist() for line in losses} == {
        "a loss_mask": [4.0],
        "b loss_mask": [5.0],
    }


def test_scores_of_other_weights_images_and_tasks_are_kept_apart(
    tmp_path: Path, panels: dict[str, Axes]
) -> None:
    path = tmp_path / "metrics.json"
    record = {"iteration": 19, "total_loss": 1.0, "val/total_loss": 2.0, "val/loss_mask": 0.5}
    record |= {"segm/AP": 30, "segm/AP50": 40, "segm/AP75": 20, "segm/AP-a": 35}
    record |= {"ema/segm/AP": 31, "ema/segm/AP50": 41, "ema/segm/AP75": 21, "ema/segm/AP-a": 36}
    record |= {"train/segm/AP50": 60, "train/segm/AP-a": 61, "train/panoptic/PQ": 70}
    record |= {"panoptic/PQ": 50, "panoptic/mPQ+": 45, "panoptic/PQ-a": 51, "bbox/AP50": 42}
    path.write_text(json.dumps(record) + "\n")
    plot_metrics({"a": path}, tmp_path / "curves.png")
    drawn = {
        title: {line.get_label(): line.get_ydata().tolist() for line in axes.get_lines()}
        for title, axes in panels.items()
    }
    assert drawn == {
        "Total loss": {"training": [1.0], "validation": [2.0]},
        "Validation loss by part": {"loss_mask": [0.5]},
        "Mask AP, validation": {"AP": [30.0], "AP50": [40.0], "AP75": [20.0]},
        "Mask AP by class, validation": {"a": [35.0]},
        "Mask AP by weights and images": {
            "AP50, validation": [40.0],
            "AP50, averaged weights": [41.0],
            "AP50, training images": [60.0],
            "AP, validation": [30.0],
            "AP, averaged weights": [31.0],
        },
        "Panoptic quality, validation": {"PQ": [50.0]},
    }


def test_a_legend_leaves_out_runs_that_a_panel_does_not_show(
    tmp_path: Path, panels: dict[str, Axes]
) -> None:
    runs = {"none": training(tmp_path / "none", evaluated=False)}
    runs |= {name: training(tmp_path / name) for name in ("b", "c")}
    plot_metrics(runs, tmp_path / "curves.png")
    axes = panels["Mask AP, validation"]
    assert legend_of(axes) == ["AP", "AP50", "AP75", "b", "c"]
    styles = [handle.get_linestyle() for handle in axes.get_legend().get_lines()]
    drawn = [line.get_linestyle() for line in axes.get_lines()]
    assert styles[3:] == [drawn[0], drawn[3]] and drawn[0] != drawn[3]


def test_what_was_measured_a_few_times_is_marked(tmp_path: Path, panels: dict[str, Axes]) -> None:
    plot_metrics({"a": training(tmp_path / "a")}, tmp_path / "curves.png")
    marks = {line.get_label(): line.get_marker() for line in panels["Total loss"].get_lines()}
    assert marks == {"training": "None", "validation": "o"}


@pytest.mark.parametrize(
    ("lengths", "shown"), [((20,), True), ((None,), False), ((20, 20), True), ((20, 30), False)]
)
def test_epochs_run_along_the_top_where_runs_agree(
    tmp_path: Path, panels: dict[str, Axes], lengths: tuple[int | None, ...], shown: bool
) -> None:
    runs = {
        str(k): training(tmp_path / str(k), epoch_length=length) for k, length in enumerate(lengths)
    }
    plot_metrics(runs, tmp_path / "curves.png")
    tops = panels["Total loss"].child_axes
    assert bool(tops) == shown
    if shown:
        low, high = panels["Total loss"].get_xlim()
        assert tops[0].get_xlim() == pytest.approx(((low + 1) / 20, (high + 1) / 20))


def test_pyplot_is_not_used(tmp_path: Path) -> None:
    metrics, picture = training(tmp_path / "a"), tmp_path / "curves.png"
    program = (
        "import sys; from cellseg_d2.visualization.curves import plot_metrics;"
        "plot_metrics({'a': sys.argv[1]}, sys.argv[2]);"
        "sys.exit('pyplot' if 'matplotlib.pyplot' in sys.modules else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, metrics, picture],
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "MPLBACKEND": "TkAgg"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert picture.exists()


def test_nothing_to_plot_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 9, "time": 1}\n')
    with pytest.raises(ValueError, match="no loss"):
        plot_metrics({"a": path}, tmp_path / "curves.png")
    with pytest.raises(ValueError, match="no loss"):
        plot_metrics({}, tmp_path / "curves.png")
    with pytest.raises(CellDataError):
        plot_metrics({"a": tmp_path / "missing.json"}, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
