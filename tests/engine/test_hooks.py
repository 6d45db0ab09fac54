"""Whole runs of a model that costs nothing: which files there are when, stopping and resuming."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from cellseg_d2 import ConfigError
from cellseg_d2.engine import CellTrainer

EVERYTHING = ("SOLVER.EMA.ENABLED", True, "TEST.LOSS_IMAGES", 1, "TEST.EARLY_STOPPING.PATIENCE", 9)


def files(cfg) -> set[str]:
    return {p.name for p in Path(cfg.OUTPUT_DIR).glob("model_*")}


def load(cfg, name: str) -> dict:
    """A file's content but for times."""
    content = torch.load(Path(cfg.OUTPUT_DIR) / f"model_{name}.pth")
    rows = content.get("trainer", {}).get("hooks", {}).get("MetricRows", {})
    for key in ("time", "data_time"):
        rows.pop(key, None)
    return content


def rows(cfg) -> list[dict]:
    """The metrics but for times."""
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "time" not in k} for line in lines]


class Interrupted(Exception):
    """Stands in for a job that is ended."""


def interrupt(trainer: CellTrainer, iteration: int) -> None:
    """Let a run end in the middle of a step."""

    class End(HookBase):
        def before_step(self) -> None:
            if self.trainer.iter == iteration:
                raise Interrupted

    trainer.register_hooks([End()])


def test_what_is_kept(tiny, train, scored) -> None:
    cfg = tiny("SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.KEEP_CHECKPOINTS", 2)
    stray = Path(cfg.OUTPUT_DIR) / "model_0000009.pth"  # of another run
    stray.touch()
    (Path(cfg.OUTPUT_DIR) / "model_0000003.pth.part").touch()  # of a killed one
    train(cfg, scored([5.0, 7.0, 6.0]))
    numbered = {"model_0000004.pth", "model_0000005.pth", stray.name}
    assert files(cfg) == numbered | {"model_best.pth", "model_final.pth"}
    assert load(cfg, "best")["iteration"] == 3
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize(("period", "keep", "count"), [(1, 0, 6), (2, 9, 3), (2, 1, 1), (0, 2, 0)])
def test_how_many_are_kept(tiny, train, scored, period: int, keep: int, count: int) -> None:
    cfg = tiny("SOLVER.CHECKPOINT_PERIOD", period, "SOLVER.KEEP_CHECKPOINTS", keep)
    train(cfg, scored([1.0, 1.0, 1.0]))
    assert len(files(cfg) - {"model_best.pth", "model_final.pth"}) == count


def test_a_negative_number_to_keep_is_refused(tiny, train) -> None:
    with pytest.raises(ConfigError, match="KEEP_CHECKPOINTS"):
        train(tiny("SOLVER.KEEP_CHECKPOINTS", -1))


@pytest.mark.parametrize("end", [1, 3, 4, 5])
def test_a_resumed_run_is_the_uninterrupted_one(tiny, train, scored, same, end: int) -> None:
    kind = scored([5.0, 7.0, 6.0])
    options = (*EVERYTHING, "SOLVER.KEEP_CHECKPOINTS", 2)
    whole, halves = tiny(*options, output="whole"), tiny(*options, output="halves")
    train(whole, kind)
    torch.manual_seed(0)
    trainer = kind(halves)
    trainer.resume_or_load(resume=False)
    interrupt(trainer, end)
    with pytest.raises(Interrupted):
        trainer.train()
    resumed = train(halves, kind, resume=True)
    assert resumed.start_iter == end // 2 * 2
    assert files(halves) == files(whole)
    for name in ("final", "best", "ema", "0000005", "0000003"):
        assert same(load(halves, name), load(whole, name)), name
    assert rows(halves) == rows(whole)
    assert resumed.evaluation.results == {"ema/segm": {"AP50": 6.0}, "segm": {"AP50": 6.0}}


def test_stopping_early_ends_the_run_as_any_end(tiny, train, scored, caplog, same) -> None:
    options = (*EVERYTHING, "SOLVER.MAX_ITER", 20, "SOLVER.CHECKPOINT_PERIOD", 4)
    cfg = tiny(*options, "TEST.EARLY_STOPPING.PATIENCE", 2)
    evaluated = []

    class Counting(scored([5.0, 7.0, 7.0, 6.0, 9.0])):
        def test(self, cfg, model):
            evaluated.append(self.iter)
            return super().test(cfg, model)

    with caplog.at_level(logging.WARNING):
        trainer = train(cfg, Counting)
    assert "stopping at iteration 7: for 2 evaluations, segm/AP50 has not risen" in caplog.text
    assert "Exception during training" not in caplog.text
    assert evaluated == [1, 1, 3, 3, 5, 5, 7, 7], "each once, for either kind of weights"
    assert load(cfg, "final")["iteration"] == 7 and load(cfg, "best")["iteration"] == 3
    assert rows(cfg)[-1]["iteration"] == 7 and rows(cfg)[-1]["segm/AP50"] == 6.0
    assert trainer.evaluation.results["segm"] == {"AP50": 6.0}

    # Resumed, it trains and evaluates no more.
    before, lines = load(cfg, "final"), rows(cfg)
    with caplog.at_level(logging.WARNING):
        again = train(cfg, Counting, resume=True)
    assert "stopped early, at iteration 7, and is not trained on" in caplog.text
    assert len(evaluated) == 8 and again.evaluation.results["segm"] == {"AP50": 6.0}
    assert same(load(cfg, "final"), before) and rows(cfg) == lines

    # With more patience it does.
    patient = tiny(*options, "TEST.EARLY_STOPPING.PATIENCE", 3)
    patient.SOLVER.MAX_ITER = 10
    train(patient, Counting, resume=True)
    assert evaluated[8:] == [9, 9]
    assert load(patient, "best")["iteration"] == 9 == load(patient, "final")["iteration"]


def test_a_finished_run_is_not_evaluated_again(tiny, train, scored) -> None:
    cfg = tiny()
    train(cfg, scored([5.0, 7.0, 6.0]))
    again = train(cfg, scored([]), resume=True)
    assert again.evaluation.results == {"segm": {"AP50": 6.0}}


def test_a_run_that_is_beyond_its_end_is_refused(tiny, train, scored) -> None:
    train(tiny(), scored([5.0, 7.0, 6.0]))
    with pytest.raises(ConfigError, match="has 6 iterations behind it, and the config asks for 3"):
        train(tiny("SOLVER.MAX_ITER", 3), scored([]), resume=True)


def test_killed_before_the_final_model_it_is_written_on_resuming(tiny, train, scored, same) -> None:
    kind = scored([5.0, 7.0, 6.0])
    whole, cut = tiny(output="whole"), tiny(output="cut")
    train(whole, kind)
    train(cut, kind)
    folder = Path(cut.OUTPUT_DIR)
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text("model_0000005.pth")
    train(cut, scored([]), resume=True)
    assert same(load(cut, "final"), load(whole, "final"))
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize("iteration", [3, 5])
def test_an_evaluation_that_fails_costs_no_training(
    tiny, train, scored, same, iteration: int
) -> None:
    kind = scored([5.0, 7.0, 6.0])
    whole, failed = tiny(*EVERYTHING, output="whole"), tiny(*EVERYTHING, output="failed")
    train(whole, kind)

    class Failing(kind):
        def test(self, cfg, model):
            if self.iter == iteration:
                raise Interrupted
            return super().test(cfg, model)

    with pytest.raises(Interrupted):
        train(failed, Failing)
    name = f"model_{iteration:07d}.pth"
    assert (Path(failed.OUTPUT_DIR) / "last_checkpoint").read_text() == name
    resumed = train(failed, kind, resume=True)
    assert resumed.start_iter == iteration + 1
    for name in ("final", "best", "ema"):
        assert same(load(failed, name), load(whole, name)), name
    scores = [
        {k: r[k] for k in ("iteration", "segm/AP50")} for r in rows(failed) if "segm/AP50" in r
    ]
    assert scores == [{"iteration": k, "segm/AP50": v} for k, v in ((1, 5.0), (3, 7.0), (5, 6.0))]


@pytest.mark.parametrize("name", ["model_0000003.pth", "model_ema.pth", "model_final.pth"])
def test_a_full_disk_leaves_the_last_checkpoint(tiny, train, scored, same, name: str) -> None:
    kind = scored([5.0, 7.0, 6.0])
    whole, full = tiny(*EVERYTHING, output="whole"), tiny(*EVERYTHING, output="full")
    train(whole, kind)
    folder = Path(full.OUTPUT_DIR)
    part = folder / f"{name}.part"

    class Filling(kind):
        def before_step(self):
            super().before_step()
            if self.iter == (5 if "final" in name else 3):
                part.symlink_to("/dev/full")

    with pytest.raises(OSError, match=rf"{name}: the disk does not take .*No space left.*--resume"):
        train(full, Filling)
    assert not part.is_symlink()
    last = "model_0000005.pth" if "final" in name else "model_0000001.pth"
    assert (folder / "last_checkpoint").read_text() == last
    train(full, kind, resume=True)
    assert same(load(full, "final"), load(whole, "final"))
    assert same(load(full, "ema"), load(whole, "ema"))


def test_ranks_hold_what_rank_0_found(tiny, train, monkeypatch) -> None:
    """On rank 1 there are no scores; it takes over rank 0's, stops with it, and writes nothing."""

    class Blind(CellTrainer):
        def test(self, cfg, model):
            return {}

    found = ({"segm": {"AP50": 3.0}}, {"val/total_loss": 2.0})
    gathered = comm.all_gather

    def gather(part):
        return [found, part] if isinstance(part, tuple) and part[0] == {} else gathered(part)

    monkeypatch.setattr(comm, "all_gather", gather)
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    cfg = tiny("SOLVER.MAX_ITER", 20, "TEST.EARLY_STOPPING.PATIENCE", 1)
    trainer = train(cfg, Blind)
    assert trainer.iter == 4, "a gain, and none"
    assert trainer.evaluation.results == found[0]
    assert trainer.storage.latest()["val/total_loss"][0] == 2.0
    assert not files(cfg)
