"""Which model is the best, what is written of it, and when patience is at its end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cellseg_d2 import ConfigError
from cellseg_d2.checkpoint import CellCheckpointer
from cellseg_d2.engine.best_model import BestModel, best_metric, flatten, known_scores
from cellseg_d2.engine.ema import WeightAverage
from cellseg_d2.evaluation import CellEvaluator

NAN = float("nan")


def follow(best: BestModel, scores: list[float], start: int = 0) -> list[int]:
    """Feed scores, the model's bias set to the iteration; return without_gain after each."""
    counts = []
    for iteration, score in enumerate(scores, start):
        nn.init.constant_(best.checkpointer.model.bias, iteration)
        best.update({"segm": {"AP50": score, "AP": 0.0}}, iteration)
        counts.append(best.without_gain)
    return counts


def make(folder: Path, *arguments: float, **options: object) -> BestModel:
    checkpointer = CellCheckpointer(nn.Linear(1, 1), str(folder))
    return BestModel("segm/AP50", *arguments, checkpointer=checkpointer, **options)


@pytest.mark.parametrize(
    ("scores", "iteration", "score"),
    [
        ([1.0, 3.0, 2.0], 1, 3.0),
        ([3.0, 3.0, 3.0], 0, 3.0),  # the first of equals
        ([NAN, 0.0, NAN], 1, 0.0),
        ([5.0, NAN, float("inf")], 0, 5.0),
        ([-1.0, -2.0], 0, -1.0),
    ],
)
def test_the_file_is_of_the_highest_score(tmp_path: Path, scores, iteration, score) -> None:
    follow(make(tmp_path), scores)
    saved = torch.load(tmp_path / "model_best.pth")
    assert saved.keys() == {"model", "iteration", "metric", "score"}
    assert saved["model"]["bias"].item() == saved["iteration"] == iteration
    assert (saved["metric"], saved["score"]) == ("segm/AP50", score)
    assert [p.name for p in tmp_path.iterdir()] == ["model_best.pth"], "no last_checkpoint"


def test_nan_alone_writes_nothing_and_costs_no_patience(tmp_path: Path) -> None:
    best = make(tmp_path, 1)
    follow(best, [NAN, NAN, NAN])
    assert not best.out_of_patience and best.score is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("patience", "min_gain", "scores", "counts", "stops"),
    [
        (2, 0.0, [1, 2, 2, 2], [0, 0, 1, 2], True),
        (2, 0.0, [1, 2, 1, 3, 1], [0, 0, 1, 0, 1], False),
        (2, 1.0, [1, 1.5, 2, 2.5], [0, 1, 2, 0], False),  # 2.5 is more than 1 above 1
        (3, 1.0, [1, 1.5, 2, 1], [0, 1, 2, 3], True),
        (2, 0.0, [1, NAN, 1, NAN], [0, 0, 1, 1], False),
        (0, 0.0, [1, 1, 1, 1], [0, 1, 2, 3], False),
    ],
)
def test_patience_by_hand(tmp_path: Path, patience, min_gain, scores, counts, stops) -> None:
    best = make(tmp_path, patience, min_gain)
    assert follow(best, scores) == counts
    assert best.out_of_patience == stops


def test_a_gain_too_small_is_the_best_model_all_the_same(tmp_path: Path) -> None:
    follow(make(tmp_path, 5, 1.0), [1.0, 1.5])
    assert torch.load(tmp_path / "model_best.pth")["score"] == 1.5


def test_state_is_gone_on_from(tmp_path: Path) -> None:
    scores = [1.0, 4.0, 3.0, 4.5, 2.0, 2.0]
    whole = make(tmp_path / "a", 3, 1.0)
    expected = follow(whole, scores)
    half = make(tmp_path / "b", 3, 1.0)
    counts = follow(half, scores[:3])
    resumed = make(tmp_path / "b", 3, 1.0)
    resumed.load_state_dict(half.state_dict())
    assert counts + follow(resumed, scores[3:], 3) == expected
    assert resumed.state_dict() == whole.state_dict()
    a, b = (torch.load(tmp_path / name / "model_best.pth") for name in "ab")
    assert a.pop("model")["bias"].item() == b.pop("model")["bias"].item() == 3
    assert a == b == {"iteration": 3, "metric": "segm/AP50", "score": 4.5}


def test_a_search_by_another_metric_starts_anew(tmp_path: Path, caplog) -> None:
    half = make(tmp_path)
    follow(half, [9.0, 9.0])
    other = BestModel("segm/AP", checkpointer=half.checkpointer)
    other.load_state_dict(half.state_dict())
    assert "starts anew" in caplog.text
    assert other.score is None and other.without_gain == 0


def test_a_score_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    best = make(tmp_path)
    best.update({}, 0)  # nothing was evaluated
    with pytest.raises(ConfigError, match=r"'segm/AP50'; the scores are bbox/AP, bbox/AP50$"):
        best.update({"bbox": {"AP": 1.0, "AP50": 2.0}}, 0)


def test_averaged_weights_are_written_where_their_score_counts(tmp_path: Path) -> None:
    checkpointer = CellCheckpointer(nn.Linear(1, 1), str(tmp_path))
    average = WeightAverage(checkpointer.model, 0.9)
    average.before_train()
    nn.init.constant_(checkpointer.model.bias, 7.0)
    average.after_step()
    for metric, expected in (
        ("ema/segm/AP", average.weights()["bias"].item()),
        ("segm/AP", 7.0),
    ):
        best = BestModel(metric, checkpointer=checkpointer, average=average)
        best.update({"ema/segm": {"AP": 1.0}, "segm": {"AP": 1.0}}, 0)
        assert torch.load(tmp_path / "model_best.pth")["model"]["bias"].item() == expected
    assert average.weights()["bias"].item() != 7.0


def test_a_file_that_cannot_be_written_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "model_best.pth.part").symlink_to("/dev/full")
    best = make(tmp_path)
    with pytest.raises(OSError, match=r"model_best\.pth: the disk does not take"):
        follow(best, [1.0])
    assert best.score is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "metric"),
    [
        ([], "segm/AP50"),
        ([], "segm/AP-class2"),
        ([], "panoptic/mPQ+"),
        ([], ""),
        (["MODEL.MASK_ON", False], "bbox/AP"),
        (["SOLVER.EMA.ENABLED", True], "ema/segm/AP50"),
        (["TEST.TRAIN_IMAGES", 3], "train/segm/AP"),
        (["DATASETS.TEST", ("cells_val", "cells_train")], "cells_train/segm/AP"),
        (["DATASETS.TEST", ("a", "b"), "SOLVER.EMA.ENABLED", True], "ema/b/bbox/AP75"),
    ],
)
def test_metrics_that_will_be_there(tiny, options: list, metric: str) -> None:
    assert best_metric(tiny(*options, "TEST.BEST_METRIC", metric)) == metric


@pytest.mark.parametrize(
    ("metric", "full"),
    [("segm/AP50", "b/segm/AP50"), ("ema/bbox/AP", "ema/b/bbox/AP"), ("a/segm/AP", "a/segm/AP")],
)
def test_of_several_sets_the_first_counts(tiny, metric: str, full: str) -> None:
    cfg = tiny("DATASETS.TEST", ("b", "a"), "SOLVER.EMA.ENABLED", True, "TEST.BEST_METRIC", metric)
    assert best_metric(cfg) == full


def test_where_nothing_is_evaluated_no_score_counts(tiny) -> None:
    assert best_metric(tiny("DATASETS.TEST", ())) == ""


def test_training_images_alone_choose_no_model_unless_asked(tiny, tmp_path: Path, caplog) -> None:
    checkpointer = CellCheckpointer(nn.Linear(1, 1), str(tmp_path))
    options = ["DATASETS.TEST", (), "TEST.TRAIN_IMAGES", 2]
    best = BestModel.from_config(tiny(*options), checkpointer, None)
    assert best.metric == ""
    assert "no best model is kept: DATASETS.TEST is empty" in caplog.text
    assert "TEST.BEST_METRIC train/segm/AP50 would" in caplog.text
    best.update({"train/segm": {"AP50": 1.0}}, 0)
    assert not list(tmp_path.glob("*.pth"))
    caplog.clear()
    asked = tiny(*options, "TEST.BEST_METRIC", "train/segm/AP50", "TEST.EARLY_STOPPING.PATIENCE", 2)
    assert BestModel.from_config(asked, checkpointer, None).metric == "train/segm/AP50"
    assert not caplog.text


@pytest.mark.parametrize(
    ("options", "metric", "message"),
    [
        ([], "segm/AP05", r"'segm/AP05'; the scores are bbox/AP, .*segm/AP50, .*panoptic/PQ, "),
        ([], "AP50", "the scores are bbox/AP, "),
        ([], "val/total_loss", "the scores are bbox/AP, "),
        ([], "ema/segm/AP50", "the scores are bbox/AP, "),
        ([], "train/segm/AP50", "the scores are bbox/AP, "),
        (["MODEL.MASK_ON", False], "segm/AP50", "the scores are bbox/AP, "),
        (["DATASETS.TEST", ("cells_val", "b")], "segm/AP05", "are cells_val/bbox/AP, .* b/segm/AP"),
        (
            ["DATASETS.TEST", (), "TEST.TRAIN_IMAGES", 2, "TEST.EARLY_STOPPING.PATIENCE", 3],
            "segm/AP50",
            "the scores are train/bbox/AP, ",
        ),
        (["DATASETS.TEST", (), "TEST.TRAIN_IMAGES", 2], "train/AP50", "are train/bbox/AP, "),
        (["TEST.EARLY_STOPPING.PATIENCE", -1], "segm/AP", "PATIENCE is -1"),
        (["TEST.EARLY_STOPPING.MIN_GAIN", -1.0], "segm/AP", "MIN_GAIN is -1"),
        (["TEST.EARLY_STOPPING.PATIENCE", 3], "", "needs a TEST.BEST_METRIC"),
        (["TEST.EARLY_STOPPING.PATIENCE", 3, "TEST.EVAL_PERIOD", 0], "segm/AP", "EVAL_EPOCHS"),
        (["TEST.EARLY_STOPPING.PATIENCE", 3, "DATASETS.TEST", ()], "segm/AP", "DATASETS.TEST"),
    ],
)
def test_what_cannot_work_is_refused_before_training(tiny, options, metric, message) -> None:
    with pytest.raises(ConfigError, match=message):
        best_metric(tiny(*options, "TEST.BEST_METRIC", metric))


def test_the_names_are_those_of_an_evaluation(tiny) -> None:
    cfg = tiny()
    evaluator = CellEvaluator("cells_val", max_detections=10)
    evaluator.reset()
    assert known_scores(cfg) == list(flatten(evaluator.evaluate()))
