"""When the curves are drawn, and what a failing picture does to the training."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.engine import TrainerBase
from detectron2.utils.events import EventStorage
from PIL import Image

from cellseg_d2.engine import curve_hook
from cellseg_d2.engine.curve_hook import CurveHook, report_hooks


class Trainer(TrainerBase):
    """Six iterations; the second and the fourth are evaluated."""

    scores = {"segm/AP50": 10.0}

    def __init__(self, metrics: Path) -> None:
        super().__init__()
        self.metrics = metrics

    def run_step(self) -> None:
        self.storage.put_scalars(total_loss=1.0, loss_mask=1.0, lr=0.1)
        if self.iter in (1, 3):
            self.storage.put_scalars(**self.scores, smoothing_hint=False)
        record = {name: value for name, (value, _) in self.storage.latest().items()}
        with self.metrics.open("a") as file:
            file.write(json.dumps({"iteration": self.iter, **record}) + "\n")


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    trainer = Trainer(tmp_path / "metrics.json")
    trainer.register_hooks([CurveHook(tmp_path / "metrics.json", tmp_path / "curves.png")])
    return trainer


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows there were each time the curves were drawn."""
    rows: list[int] = []
    draw = curve_hook.plot_metrics

    def count(runs, picture):
        (metrics,) = runs.values()
        rows.append(len(metrics.read_text().splitlines()))
        return draw(runs, picture)

    monkeypatch.setattr(curve_hook, "plot_metrics", count)
    return rows


@pytest.mark.parametrize(
    "scores", [{"segm/AP50": 1.0}, {"val/total_loss": 1.0}, {"ema/panoptic/PQ": 1.0}]
)
def test_curves_are_drawn_after_each_evaluation_and_at_the_end(
    trainer: Trainer, drawn: list[int], scores: dict, tmp_path: Path
) -> None:
    trainer.scores = scores
    trainer.train(0, 6)
    assert drawn == [2, 4, 6]
    assert Image.open(tmp_path / "curves.png").size[0] > 500


def test_other_scalars_are_no_evaluation(trainer: Trainer, drawn: list[int]) -> None:
    trainer.scores = {"roi_head/num_fg": 1.0, "fast_rcnn/cls_accuracy": 1.0}
    trainer.train(0, 6)
    assert drawn == [6]


def test_a_picture_that_cannot_be_drawn_is_told_and_training_goes_on(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_):
        raise TypeError("no such font")

    monkeypatch.setattr(curve_hook, "plot_metrics", fail)
    with caplog.at_level(logging.ERROR):
        trainer.train(0, 6)
    assert trainer.iter == 6
    assert (
        len(caplog.records) == 3
        and "no such font" in caplog.text
        and "curves.png could not be" in caplog.text
    )


def test_a_full_disk_stops_the_run(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "curves.png")

    monkeypatch.setattr(curve_hook, "plot_metrics", full)
    with pytest.raises(OSError, match="No space left on device: 'curves.png'"):
        trainer.train(0, 6)


@pytest.mark.parametrize("opened", [False, True])
def test_a_run_without_metrics_draws_nothing(tmp_path: Path, caplog, opened: bool) -> None:
    if opened:
        (tmp_path / "metrics.json").touch()
    hook = CurveHook(tmp_path / "metrics.json", tmp_path / "curves.png")
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(iter=0, storage=storage)
        hook.after_step()
        hook.after_train()
    assert not (tmp_path / "curves.png").exists()
    assert not caplog.records, "no traceback over the error that ended the run"


def test_the_hooks_of_a_run_report_on_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = Trainer(tmp_path / "metrics.json")
    trainer.register_hooks(report_hooks(tmp_path, 6, 4))
    with caplog.at_level(logging.INFO, "cellseg_d2"):
        trainer.train(0, 6)
    assert "iteration 6/6" in caplog.text
    assert (tmp_path / "curves.png").is_file()
