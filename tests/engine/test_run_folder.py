"""Which folders are refused, and which changes of the config are told."""

from __future__ import annotations

import json
import logging
import resource
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode

from cellseg_d2 import CellDataError, load_config
from cellseg_d2.engine.run_folder import (
    CONFIG_FILE,
    RECORD_FILE,
    begin_run,
    changed_keys,
    config_as_data,
    flatten_config,
    read_record,
    refuse_second_run,
    warn_of_changes,
    write_config,
)


@pytest.mark.parametrize(
    "name", ["model_0000009.pth", "model_final.pth", "last_checkpoint", "run.json", "metrics.json"]
)
def test_a_second_run_into_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CellDataError) as caught:
        refuse_second_run(tmp_path, resume=False)
    for text in (str(tmp_path), name, "--resume", "OUTPUT_DIR", "remove the folder"):
        assert text in str(caught.value)
    refuse_second_run(tmp_path, resume=True)


def test_many_files_are_not_all_listed(tmp_path: Path) -> None:
    for k in range(9):
        (tmp_path / f"model_{k:07d}.pth").touch()
    with pytest.raises(CellDataError, match=r"model_0000002\.pth and 6 more\)"):
        refuse_second_run(tmp_path, resume=False)


def test_what_no_training_left_is_no_obstacle(tmp_path: Path) -> None:
    refuse_second_run(tmp_path / "missing", resume=False)
    refuse_second_run(tmp_path, resume=False)
    # As a run leaves it that was refused before its first iteration, or an evaluation.
    for name in ("config.yaml", "log.txt", "scores.json", "annotation_cache"):
        (tmp_path / name).write_text("x")
    (tmp_path / "metrics.json").touch()
    refuse_second_run(tmp_path, resume=False)


def config(tmp_path: Path, *options: object) -> CfgNode:
    return load_config(options=["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu", *options])


def test_changed_keys_are_named_with_both_values(tmp_path: Path, caplog) -> None:
    was = config_as_data(config(tmp_path))
    (tmp_path / RECORD_FILE).write_text(json.dumps({"config": was, "sessions": []}))
    options = ("SOLVER.BASE_LR", 0.5, "DATASETS.TRAIN", ("a",), "DATALOADER.NUM_WORKERS", 17)
    now = config(tmp_path, *options, "MODEL.ROI_MASK_HEAD.LOSS", "dice")
    with caplog.at_level(logging.WARNING):
        warn_of_changes(now)
    told = [each for each in caplog.records if each.name.endswith("run_folder")]
    assert len(told) == 3
    for text in (
        "SOLVER.BASE_LR 0.5; it was 0.001",
        "DATASETS.TRAIN ['a']",
        "LOSS dice; it was bce",
    ):
        assert text in caplog.text
    same, new = config(tmp_path), config(tmp_path / "new")
    caplog.clear()
    warn_of_changes(same)
    warn_of_changes(new)
    assert not caplog.records


def test_keys_of_another_release_are_named() -> None:
    was = {"A": {"B": 1, "C": 2}, "OUTPUT_DIR": "x"}
    now = {"A": {"C": 2, "D": {"E": [1]}}, "OUTPUT_DIR": "y"}
    assert changed_keys(was, now) == {"A.B": (1, None), "A.D.E": (None, [1])}
    assert changed_keys(was, was) == {}
    assert flatten_config(now) == {"A.C": 2, "A.D.E": [1], "OUTPUT_DIR": "y"}
    assert flatten_config({}) == {}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"sessions": 1, "config": {}}'])
def test_a_damaged_record_is_an_error(tmp_path: Path, content: str) -> None:
    assert read_record(tmp_path) is None
    (tmp_path / RECORD_FILE).write_text(content)
    with pytest.raises(CellDataError, match=r"run\.json.*remove it"):
        read_record(tmp_path)


def test_a_run_begins_with_its_config_and_seed(tmp_path: Path) -> None:
    cfg = load_config(options=["OUTPUT_DIR", str(tmp_path), "SEED", 7])
    begin_run(cfg, Namespace(resume=False))
    write_config(cfg)
    assert yaml.safe_load((tmp_path / CONFIG_FILE).read_text()) == yaml.safe_load(cfg.dump())
    drawn = torch.rand(3)
    begin_run(cfg, Namespace(resume=True))
    assert torch.equal(torch.rand(3), drawn)


def test_a_run_that_is_gone_on_with_on_a_full_disk_keeps_its_config(tmp_path: Path) -> None:
    cfg = load_config(options=["OUTPUT_DIR", str(tmp_path)])
    write_config(cfg)
    before = (tmp_path / CONFIG_FILE).read_bytes()
    cfg.SEED = 3
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError):
            write_config(cfg)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / CONFIG_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG_FILE]
