"""The tables and curves of an ablation, against figures worked out by hand."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from cellseg_d2 import CellDataError
from cellseg_d2.engine.ablation import Failure, Run
from cellseg_d2.engine.ablation_file import Ablation, Split
from cellseg_d2.engine.ablation_table import (
    Statistic,
    differences,
    draw_curves,
    summarize,
    write_tables,
)

ABLATION = Ablation("report9", "cpu", (1, 2), ())


def run(
    output: Path, variant: str, seed: int, ap50: float | None = None, split: str = "", **figures
) -> Run:
    """A run, finished if it has an AP50."""
    folder = output / variant / split / f"seed{seed}"
    folder.mkdir(parents=True)
    if ap50 is not None:
        scores = {"segm": {"AP": 30.0, "AP50": ap50, "AP75": None}, "bbox": {"AP50": 71.04}}
        result = {"scores": scores, "parameters": 12_340_000, "seconds": 100.0} | figures
        (folder / "result.json").write_text(json.dumps(result))
        lines = [{"iteration": k, "total_loss": 1.0 / k, "lr": 0.1} for k in (1, 2)]
        (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Run(variant, seed, folder, Path("x.yaml"), (), split)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [
        run(tmp_path, "sgd", 1, 36.0),
        run(tmp_path, "sgd", 2, 40.0, seconds=51.0),
        run(tmp_path, "adamw", 1, 40.55, seconds=None, parameters=None),
        run(tmp_path, "adamw", 2),
        run(tmp_path, "v2", 1),
        run(tmp_path, "v2", 2),
    ]


def test_variances_of_splits_are_averaged() -> None:
    statistic = Statistic.of([1.0, 3.0], [10.0, 14.0, None], [6.0])
    assert statistic.mean == pytest.approx((2 + 12 + 6) / 3)
    assert statistic.spread == pytest.approx(((2 + 8) / 2) ** 0.5)


@pytest.mark.parametrize(
    ("values", "mean", "spread"),
    [
        ([1.0, 2.0, 3.0, 4.0], 2.5, (5 / 3) ** 0.5),
        ([7.0], 7.0, None),
        ([7.0, None], 7.0, None),
        ([], None, None),
        ([None, None], None, None),
    ],
)
def test_spread_is_the_sample_standard_deviation(values, mean, spread) -> None:
    statistic = Statistic.of(values)
    assert statistic.mean == mean
    assert statistic.spread == (spread if spread is None else pytest.approx(spread))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown(runs: list[Run], tmp_path: Path) -> None:
    text = write_tables(tmp_path, ABLATION, runs, [Failure(runs[3], "exit status 3", ("x",))])
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == text
    title, table, note, failures = text.strip().split("\n\n")
    assert title == "# report9, form cpu" and "seeds: 1, 2" in note
    assert failures == f"- failed: {runs[3].folder} (exit status 3)"
    header, _, *rows = [cells(line) for line in table.splitlines()]
    assert header == [
        *("variant", "runs", "segm AP", "segm AP50", "segm AP75", "bbox AP50", "panoptic PQ"),
        *("parameters (M)", "training (s)"),
    ]
    assert rows == [
        ["sgd", "2", "30.0 ± 0.0", "38.0 ± 2.8", "–", "71.0 ± 0.0", "–", "12.34", "76"],
        ["adamw", "1 of 2", "30.0 ± –", "40.5 ± –", "–", "71.0 ± –", "–", "–", "–"],
        ["v2", "0 of 2", "–", "–", "–", "–", "–", "–", "–"],
    ]


def test_splits_have_a_table_each_and_count_alike(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, "sgd", 1, 30.0, "a"),
        run(tmp_path, "sgd", 2, 34.0, "a"),
        run(tmp_path, "sgd", 1, 50.0, "b"),
        run(tmp_path, "sgd", 2, None, "b"),
    ]
    splits = (Split("a", ()), Split("b", ()))
    text = write_tables(tmp_path, Ablation("x", "", (1, 2), (), splits), runs)
    rows = [cells(line) for line in text.splitlines() if line.startswith("| sgd")]
    # Means of 32 and 50; the variance of 30 and 34 is 8, the other split has none.
    assert [row[1] for row in rows] == ["3 of 4", "2", "1 of 2"]
    assert [row[3] for row in rows] == ["41.0 ± 2.8", "32.0 ± 2.8", "50.0 ± –"]
    assert "## Split a" in text and "## Split b" in text


def test_where_weights_are_averaged_their_scores_are_shown(tmp_path: Path) -> None:
    averaged = {"segm": {"AP50": 30.0}, "ema/segm": {"AP50": 33.0}, "panoptic": {"PQ": 9.0}}
    runs = [
        run(tmp_path, "raw", 1, 31.0),
        run(tmp_path, "averaged", 1, 0.0, scores=averaged),
    ]
    _, row = summarize(runs)
    assert [score.mean for score in row.scores] == [None, 33.0, None, None, 9.0]
    (difference,) = differences(runs, "raw")
    assert difference.scores[1] == (2.0,)


def test_differences_are_of_pairs_of_the_same_split_and_seed(tmp_path: Path) -> None:
    def pq(value: float, ap50: float) -> dict:
        return {"scores": {"segm": {"AP50": ap50}, "panoptic": {"PQ": value}}}

    runs = [
        run(tmp_path, "small", 1, 0.0, "a", **pq(40.0, 30.0)),
        run(tmp_path, "small", 2, 0.0, "a", **pq(41.0, 30.5)),
        run(tmp_path, "small", 1, 0.0, "b", **pq(60.0, None)),
        run(tmp_path, "small", 2, 0.0, "b", **pq(99.0, 99.0)),  # without a partner
        run(tmp_path, "best", 1, 0.0, "a", **pq(45.0, 31.0)),
        run(tmp_path, "best", 2, 0.0, "a", **pq(45.0, 30.0)),
        run(tmp_path, "best", 1, 0.0, "b", **pq(66.0, 50.0)),
        run(tmp_path, "best", 2, None, "b"),
        run(tmp_path, "late", 1, None, "a"),
    ]
    small, late = differences(runs, "best")
    assert (small.variant, small.pairs) == ("small", 3)
    # AP, AP50, AP75, AP50 of boxes, PQ.
    assert small.scores == ((), (-1.0, 0.5), (), (), (-5.0, -4.0, -6.0))
    assert (late.variant, late.pairs, late.scores) == ("late", 0, ((),) * 5)

    splits = (Split("a", ()), Split("b", ()))
    ablation = Ablation("x", "", (1, 2), (), splits, (), "best")
    _, _, note, table, *rest = write_tables(tmp_path, ablation, runs).split("\n\n")
    assert note.startswith("Less best, for each pair of one split and seed")
    rows = [cells(line) for line in table.splitlines()[2:]]
    # The sample standard deviations of -1 and .5, and of -5, -4 and -6.
    ap50, of_pq = "-0.2 ± 1.1 [-1.0, +0.5]", "-5.0 ± 1.0 [-6.0, -4.0]"
    assert rows[0] == ["small", "3", "–", ap50, "–", "–", of_pq]
    assert rows[1] == ["late", "0", *["–"] * 5]
    assert not any("Less best" in part for part in rest)


def test_csv(runs: list[Run], tmp_path: Path) -> None:
    write_tables(tmp_path, ABLATION, runs)
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines == [
        "variant,finished,runs,segm_AP_mean,segm_AP_spread,segm_AP50_mean,segm_AP50_spread,"
        "segm_AP75_mean,segm_AP75_spread,bbox_AP50_mean,bbox_AP50_spread,"
        "panoptic_PQ_mean,panoptic_PQ_spread,parameters,seconds",
        "sgd,2,2,30.0000,0.0000,38.0000,2.8284,,,71.0400,0.0000,,,12340000,75.5",
        "adamw,1,2,30.0000,,40.5500,,,,71.0400,,,,,",
        "v2,0,2,,,,,,,,,,,,",
    ]


def test_a_model_without_masks_has_a_row(tmp_path: Path) -> None:
    only = run(tmp_path, "boxes", 1, 0.0, scores={"bbox": {"AP50": 5.0}})
    (row,) = summarize([only])
    assert [score.mean for score in row.scores] == [None, None, None, 5.0, None]


def test_damaged_results_are_named(runs: list[Run], tmp_path: Path) -> None:
    (runs[0].folder / "result.json").write_text('{"scores": ')
    with pytest.raises(CellDataError, match=r"sgd/seed1/result\.json"):
        write_tables(tmp_path, ABLATION, runs)


def test_curves_are_those_of_the_finished_runs(runs: list[Run], tmp_path: Path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "cellseg_d2.engine.ablation_table.plot_metrics",
        lambda metrics, path: drawn.update(metrics) or path,
    )
    assert draw_curves(tmp_path, runs) == tmp_path / "curves.png"
    assert drawn == {
        name: tmp_path / name / "metrics.json" for name in ("sgd/seed1", "sgd/seed2", "adamw/seed1")
    }
    drawn.clear()
    draw_curves(tmp_path, [runs[0], runs[2]])
    assert list(drawn) == ["sgd", "adamw"]


def test_curves_are_a_picture(runs: list[Run], tmp_path: Path, caplog) -> None:
    assert Image.open(draw_curves(tmp_path, runs)).width > 500
    with caplog.at_level(logging.WARNING):
        assert draw_curves(tmp_path / "none", runs[3:]) is None
    assert "no curves" in caplog.text and not (tmp_path / "none").exists()
