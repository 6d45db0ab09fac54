"""Facts are those of the record and the config."""

from __future__ import annotations

from dataclasses import replace

from cellseg_d2.visualization.report.facts import config_rows, run_facts
from cellseg_d2.visualization.report.sources import RunSources

from .runs import CLASSES


def test_the_record_is_told(run: RunSources) -> None:
    groups = {group.title: dict(group.rows) for group in run_facts(run)}
    assert list(groups) == ["Evaluation", "Training", "Program and machine"]
    assert groups["Evaluation"]["images"] == "5"
    assert groups["Evaluation"]["classes"] == ", ".join(CLASSES)
    assert "'</script><b>.yaml'" in groups["Training"]["command"]  # as a shell would take it
    assert run.record["data"]["fingerprint"] in groups["Training"]["data"]
    assert groups["Program and machine"]["torch"] == run.record["sessions"][0]["versions"]["torch"]


def test_without_a_record_the_evaluation_is_told(run: RunSources) -> None:
    assert [group.title for group in run_facts(replace(run, record=None))] == ["Evaluation"]


def test_weights_are_told_by_their_hash(run: RunSources) -> None:
    weights = {"from": "x.pkl", "bytes": 12, "sha256": "ab"}
    facts = run_facts(replace(run, record={**run.record, "weights": weights}))
    assert dict(facts[1].rows)["began with weights"] == "x.pkl (12 bytes, SHA-256 ab)"


def test_the_configs_own_values_stand_beside_the_defaults(run: RunSources) -> None:
    rows = {key: (own, default) for key, own, default in config_rows(run)}
    assert rows["INPUT.CELL.CHANNEL_ORDER"] == ("BGR", "RGB")
    assert "OUTPUT_DIR" not in rows
    assert run.cfg.SOLVER.GAMMA == 0.1 and "SOLVER.GAMMA" not in rows  # the default
