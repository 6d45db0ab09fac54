"""The script end to end, with a small model of random weights. Oracle: one run in one process."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

import predict
from cellseg_d2 import load_config
from cellseg_d2.data import load_cell_dicts
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset
from cellseg_d2.export.submission_check import check_submission
from cellseg_d2.structures.flatten import flatten_masks

TINY = [
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "INPUT.CELL.CHANNEL_ORDER", "BGR"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "20"),
    *("MODEL.DEVICE", "cpu"),
]
FILES = ["--labels", "--geojson", "--csv", "--overlay"]


@pytest.fixture(autouse=True)
def fresh_loggers() -> Iterator[None]:
    """Let the script log to the stream that is in place now, not to an earlier test's."""
    yield
    setup_logger.cache_clear()
    for name in ("cellseg_d2", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let sums be added up in one order in all processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write_dataset(folder, SyntheticParameters(train=1, test=12, size=(64, 80), cells=(4, 8)))
    return folder / "test_release"


@pytest.fixture(scope="module")
def model(repository: Path, tmp_path_factory) -> list[str]:
    """The options that name a model's config and its weights, and the other keys."""
    folder = tmp_path_factory.mktemp("model")
    config = repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml"
    paths = [folder / "a.pth", folder / "b.pth"]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        cfg = load_config(config, TINY)
        network = build_model(cfg)
        # Upstream begins with weights so small that all scores are about alike.
        torch.nn.init.normal_(network.roi_heads.box_predictor.cls_score.weight, std=0.5)
        torch.save({"model": network.state_dict()}, path)
    # As trained from scratch: with weights given, a backbone's norms would be taken to be frozen.
    cfg.MODEL.WEIGHTS = str(paths[0])
    (folder / "config.yaml").write_text(cfg.dump())
    return ["--config-file", str(folder / "config.yaml")]


@pytest.fixture(scope="module")
def expected(model: list[str], images: Path, tmp_path_factory) -> Path:
    """The output of an uninterrupted run in one process."""
    out = tmp_path_factory.mktemp("expected") / "out"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert predict.run([*model, "--input", str(images), "--output", str(out), *FILES]) == 0
    torch.set_num_threads(threads)
    return out


def each_cell_once(entries: list[dict]) -> list[dict]:
    """The best entry first, those that leave half of a mask's pixels free, in their order."""
    kept, taken = [], 0
    for entry in sorted(entries, key=lambda entry: -entry["score"]):
        mask = mask_util.decode(entry["segmentation"]).astype(bool)
        if 2 * (mask & ~np.asarray(taken, bool)).sum() >= mask.sum() > 0:
            kept.append(entry)
            taken = mask | taken
    return [entry for entry in entries if any(entry is other for other in kept)]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_every_output_is_there(expected: Path, images: Path) -> None:
    report = check_submission(expected / "test-results.zip", images=images, require_all=True)
    assert not report.faults and report.total > 100
    names = sorted(path.stem for path in images.glob("*.tif"))
    for kind, suffix in [("geojson", "geojson"), ("measurements", "csv"), ("overlays", "png")]:
        found = sorted(path.name for path in (expected / kind).iterdir())
        assert found == [f"{name}.{suffix}" for name in names]
    assert sorted(path.name for path in expected.iterdir()) == [
        *("geojson", "labels", "measurements", "overlays"),
        *("test-results.json", "test-results.zip"),
    ]


@pytest.mark.slow
def test_predictions_load_as_ground_truth(expected: Path) -> None:
    entries = json.loads((expected / "test-results.json").read_text())
    records = load_cell_dicts(expected / "labels")
    assert len(records) == 12 and sum(len(record["annotations"]) for record in records) > 20
    for image_id, record in enumerate(records, 1):
        sure = [e for e in entries if e["image_id"] == image_id and e["score"] >= 0.5]
        cells = each_cell_once(sure)
        masks = [cell["segmentation"] for cell in cells]
        size = (record["height"], record["width"])
        flat = flatten_masks(masks, [cell["score"] for cell in cells], size)
        ids = [i for kept in record["kept_ids"].values() for i in kept.tolist()]
        assert sorted(ids) == (flat.kept + 1).tolist()
        for cell_id, annotation in zip(ids, record["annotations"], strict=True):
            assert annotation["category_id"] == cells[cell_id - 1]["category_id"] - 1
            visible = flat.label_map == flat.ids[cell_id - 1]
            assert annotation["area"] == visible.sum()


@pytest.mark.slow
def test_a_killed_run_goes_on(
    model: list[str], images: Path, expected: Path, repository: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = [*model, "--input", str(images), "--output", str(out), *FILES]
    script = repository / "predict.py"
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while len(list(out.glob("parts/*.jsonl"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(out.glob("test-results.*"))
    parts = {path: path.stat().st_mtime_ns for path in out.glob("parts/*.jsonl")}
    assert 3 <= len(parts) < 12
    pictures = {p: p.stat().st_mtime_ns for p in out.glob("overlays/*.png")}
    assert predict.run(arguments) == 0
    unchanged = [p for p, time_ns in pictures.items() if p.stat().st_mtime_ns == time_ns]
    assert len(unchanged) >= len(parts), "finished images were predicted again"
    assert contents(out) == contents(expected)


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(
    model: list[str], images: Path, expected: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = [*model, "--input", str(images), "--output", str(out), *FILES]
    assert predict.run([*arguments, "--num-gpus", "2", "MODEL.DEVICE", "cpu"]) == 0
    assert contents(out) == contents(expected)


@pytest.mark.slow
def test_ensemble_and_augmentation(
    model: list[str], images: Path, expected: Path, tmp_path: Path
) -> None:
    image = min(images.glob("*.tif"))
    weights = Path(model[1]).parent
    ensemble = ["--ensemble", str(weights / "a.pth"), str(weights / "b.pth")]
    single = [
        e for e in json.loads((expected / "test-results.json").read_text()) if e["image_id"] == 1
    ]
    answers = [single]
    for name, options in {
        "ensemble": [*ensemble, "TEST.MERGE.METHOD", "nms"],
        "tta": ["--tta", "TEST.TTA.TRANSFORMS", "['none', 'hflip']"],
    }.items():
        out = tmp_path / name
        arguments = [*model, "--input", str(image), "--output", str(out), *options]
        assert predict.run(arguments) == 0
        answers.append(json.loads((out / "test-results.json").read_text()))
    assert all(answers)
    assert answers[0] != answers[1] != answers[2] != answers[0]


@pytest.mark.slow
def test_an_image_that_cannot_be_read(
    model: list[str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(images.glob("*.tif"))[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    bad = sorted(folder.iterdir())[1]
    bad.write_bytes(bad.read_bytes()[:-200])
    out = tmp_path / "out"
    arguments = [*model, "--input", str(folder), "--output", str(out)]
    assert predict.run(arguments) == 1
    error = capsys.readouterr().err
    assert f"error: {bad}: found" in error and "Traceback" not in error
    assert not list(out.glob("test-results*")) and len(list(out.glob("parts/*"))) == 2
    bad.unlink()
    assert predict.run(arguments) == 0
    report = check_submission(out / "test-results.zip", images=folder, require_all=True)
    assert not report.faults and not (out / "parts").exists()


def parse(*arguments: str):
    return predict.parse(["--config-file", "c.yaml", "--output", "out", *arguments])


def test_keys_after_a_list_are_keys() -> None:
    args = parse("--input", "a", "b.tif", "TEST.TILE.SIZE", "512")
    assert (args.input, args.opts) == (["a", "b.tif"], ["TEST.TILE.SIZE", "512"])
    args = parse("--input", "a", "--ensemble", "m.pth", "N.pth", "MODEL.MASK_ON", "True")
    assert (args.input, args.ensemble) == (["a"], ["m.pth", "N.pth"])
    assert args.opts == ["MODEL.MASK_ON", "True"]
    args = parse("--input", "a", "--tta", "--labels", "SEED", "3")
    assert args.opts == ["SEED", "3", "TEST.TTA.ENABLED", "True"]


def test_a_file_that_is_spelled_like_a_key_is_a_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("IMG_1.TIF").touch()
    for name in ("IMG_1.TIF", "MISSING_1.TIF"):
        args = parse("--input", name, "TEST.TILE.SIZE", "512")
        assert (args.input, args.opts) == ([name], ["TEST.TILE.SIZE", "512"])


def test_options_have_the_documented_defaults() -> None:
    args = parse("--input", "a")
    assert not any([args.labels, args.geojson, args.csv, args.overlay, args.tta, args.ensemble])
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (1, 1, 0)
    assert args.score_threshold is None
    assert parse("--input", "a", "--overlay-threshold", "0.3").score_threshold == 0.3


@pytest.mark.parametrize("score", ["50", "-0.1", "nan"])
def test_a_score_threshold_that_is_no_score_is_wrong_usage(score: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--input", "a", "--score-threshold", score)
    assert stop.value.code == 2
    assert f"--score-threshold is {score}; scores lie in [0, 1]" in capsys.readouterr().err


def test_an_input_of_keys_alone_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--input", "TEST.TILE.SIZE", "512")
    assert stop.value.code == 2
