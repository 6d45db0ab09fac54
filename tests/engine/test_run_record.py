"""A run's record against what the run was made from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from cellseg_d2 import load_config
from cellseg_d2.data import load_cell_dicts
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset
from cellseg_d2.engine import register_datasets
from cellseg_d2.engine.run_record import (
    describe_weights,
    environment,
    fingerprint,
    git_revision,
    versions,
    write_run_record,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write_dataset(folder, SyntheticParameters(train=4, test=2, size=(48, 64), cells=(3, 5)))
    return folder


@pytest.fixture
def cfg(data: Path, tmp_path: Path) -> CfgNode:
    options = ["DATASETS.CELL.ROOT", str(data), "OUTPUT_DIR", str(tmp_path / "run")]
    cfg = load_config(options=[*options, "DATASETS.CELL.VAL_FRACTION", 0.25, "SEED", 5])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("cells_train",), ("cells_val",)
    register_datasets(cfg)
    return cfg


def record(cfg: CfgNode) -> dict:
    return json.loads((Path(cfg.OUTPUT_DIR) / "run.json").read_text())


def test_it_says_what_a_run_is_made_from(cfg: CfgNode, data: Path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MY_PASSWORD", "swordfish")
    write_run_record(cfg, command=["train_net.py", "--config-file", "x.yaml"])
    found = record(cfg)
    assert "swordfish" not in json.dumps(found)
    assert found["seeds"] == {"SEED": 5, "DATASETS.CELL.SPLIT_SEED": 0}
    assert found["weights"] == {"from": "scratch"}
    assert found["config"]["DATASETS"]["CELL"]["ROOT"] == str(data)
    sets = found["data"]["sets"]
    everything = sorted(sets["cells_train"]["names"] + sets["cells_val"]["names"])
    assert everything == sorted(path.name for path in (data / "train").iterdir())
    assert (sets["cells_train"]["images"], sets["cells_val"]["images"]) == (3, 1)
    cells = sum(
        len(np.unique(tifffile.imread(path))) - 1 for path in data.glob("train/*/class*.tif")
    )
    assert sets["cells_train"]["instances"] + sets["cells_val"]["instances"] == cells
    (session,) = found["sessions"]
    assert session["command"] == ["train_net.py", "--config-file", "x.yaml"]
    assert session["iteration"] == 0 and session["started"].endswith("+00:00")
    assert session["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert session["versions"]["python"] == platform.python_version()
    assert session["versions"]["numpy"] == np.__version__
    assert session["environment"]["variables"]["OMP_NUM_THREADS"] == "1"
    assert session["environment"]["device"] == cfg.MODEL.DEVICE


def test_a_resumed_run_adds_a_session(cfg: CfgNode, caplog) -> None:
    write_run_record(cfg)
    before = record(cfg)
    (Path(cfg.OUTPUT_DIR) / "last_checkpoint").write_text("model_0000039.pth")
    cfg.SOLVER.BASE_LR = 0.25
    with caplog.at_level(logging.WARNING):
        write_run_record(cfg, iteration=40)
    assert "fingerprint" not in caplog.text
    after = record(cfg)
    assert [session["iteration"] for session in after["sessions"]] == [0, 40]
    assert after["sessions"][0] == before["sessions"][0]
    assert after["sessions"][1]["checkpoint"] == "model_0000039.pth"
    assert after["sessions"][1]["changed"] == {"SOLVER.BASE_LR": [0.001, 0.25]}
    assert after["sessions"][1]["command"] == sys.argv
    assert {k: after[k] for k in ("data", "seeds", "weights")} == {
        k: before[k] for k in ("data", "seeds", "weights")
    }
    write_run_record(cfg, iteration=60)
    assert record(cfg)["sessions"][2]["changed"] == {}


def test_other_data_are_warned_of_on_resuming(cfg: CfgNode, caplog, monkeypatch) -> None:
    write_run_record(cfg)
    monkeypatch.setattr(
        "cellseg_d2.engine.run_record.fingerprint", lambda root, dicts: "something else"
    )
    with caplog.at_level(logging.WARNING):
        write_run_record(cfg, iteration=1)
    assert "not those that this run began with" in caplog.text
    after = record(cfg)
    assert after["sessions"][1]["data"]["fingerprint"] == "something else"
    assert after["data"]["fingerprint"] != "something else"


def test_a_fingerprint_follows_the_data_not_their_place(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(data, copy)  # with other times
    original = fingerprint(data, load_cell_dicts(data))
    dicts = load_cell_dicts(copy)
    assert fingerprint(copy, dicts) == fingerprint(copy, dicts[::-1]) == original
    assert len({original, fingerprint(copy, dicts[1:]), fingerprint(copy, [])}) == 3

    label = sorted(copy.glob("train/*/class*.tif"))[0]
    size = label.stat().st_size
    ids = tifffile.imread(label)
    tifffile.imwrite(label, np.where(ids == ids.max(), 0, ids))
    tifffile.imwrite(label.with_name("same.tif"), ids)
    one_cell_less = fingerprint(copy, load_cell_dicts(copy))
    assert one_cell_less != original, f"{size} bytes before, {label.stat().st_size} after"

    tifffile.imwrite(label, ids)
    label.rename(label.with_name("class4.tif" if label.name != "class4.tif" else "class3.tif"))
    assert fingerprint(copy, load_cell_dicts(copy)) not in (original, one_cell_less)


def test_test_images_have_a_fingerprint_without_annotations(data: Path) -> None:
    dicts = load_cell_dicts(data, split="test")
    assert len(dicts) == 2
    assert fingerprint(data, dicts) != fingerprint(data, dicts[:1])


def test_weights_are_known_by_their_hash(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"weights" * 1000)
    assert describe_weights(str(path)) == {
        "from": str(path),
        "bytes": 7000,
        "sha256": hashlib.sha256(b"weights" * 1000).hexdigest(),
    }
    assert describe_weights("") == {"from": "scratch"}


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_revision_of_a_checkout(tmp_path: Path, monkeypatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    repository = tmp_path / "repository"
    package = repository / "cellseg_d2" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(repository), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_revision(repository) is None
    git("init")
    assert git_revision(repository) is None, "a checkout, but not of this program"
    git("add", ".")
    git("commit", "-m", "first")
    revision = git("rev-parse", "HEAD")
    assert git_revision(repository) == {"revision": revision, "dirty": False}
    (repository / "notes").write_text("")
    assert git_revision(repository) == {"revision": revision, "dirty": False}
    package.write_text("changed = True")
    assert git_revision(repository) == {"revision": revision, "dirty": True}


def test_without_git_there_is_no_revision(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(Path(__file__).parents[2]) is None


def test_what_is_not_installed_has_no_version(monkeypatch) -> None:
    monkeypatch.setattr("cellseg_d2.engine.run_record._PACKAGES", ("numpy", "no-such-package"))
    found = versions()
    assert found["numpy"] == np.__version__ and found["no-such-package"] is None
    assert isinstance(found["detectron2 compiled"], bool)


def test_a_record_is_plain_json_of_a_known_machine(cfg: CfgNode) -> None:
    found = json.loads(json.dumps(environment(cfg)))
    assert found["cpus"] >= 1 and found["threads"] == torch.get_num_threads()
    assert found["processes"] == 1 and found["cpu"]
    assert len(found["gpus"]) == torch.cuda.device_count()


@pytest.fixture(autouse=True)
def forget_data_sets():
    yield
    for name in [n for n in DatasetCatalog.list() if n.startswith("cells_")]:
        DatasetCatalog.remove(name)
