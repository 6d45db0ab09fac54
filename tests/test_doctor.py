"""Each check against a machine or a data set that is made to be so."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from cellseg_d2 import doctor
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset
from cellseg_d2.doctor import OK, WARNING, WRONG, Finding
from cellseg_d2.engine import trial

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write_dataset(folder, SyntheticParameters(train=5, test=3, size=(96, 128), cells=(6, 9)))
    return folder


def levels(findings: list[Finding], name: str) -> list[str]:
    return [finding.level for finding in findings if finding.name == name]


def test_what_is_not_ok_says_what_to_do(data: Path, tmp_path: Path) -> None:
    for finding in doctor.examine(data, tmp_path / "to" / "come"):
        assert finding.level in (OK, WARNING, WRONG) and finding.name and finding.text
        assert bool(finding.advice) == (finding.level != OK), finding
    assert not (tmp_path / "to").exists(), "it leaves something behind"


def test_packages_are_those_installed() -> None:
    findings = list(doctor.check_packages())
    assert levels(findings, "torch") == [OK] and torch.__version__.split("+")[0] in findings[1].text
    assert levels(findings, "packages") == [OK]


def test_a_package_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor._PACKAGES, "no-such-thing", "no_such_thing")
    (finding,) = [f for f in doctor.check_packages() if f.name == "no-such-thing"]
    assert finding.level == WRONG and "no_such_thing" in finding.text and finding.advice


@pytest.mark.parametrize(
    ("torch_version", "vision", "level"),
    [("2.11.0+cpu", "0.26.0", OK), ("2.11.0", "0.27.1", WRONG), ("3.1.0", "0.40.0", WARNING)],
)
def test_torch_and_torchvision_are_a_pair(torch_version, vision, level, monkeypatch) -> None:
    versions = {"torch": torch_version, "torchvision": vision}
    monkeypatch.setattr(doctor.metadata, "version", versions.__getitem__)
    assert levels(list(doctor.check_packages()), "torch") == [level]


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", "card {}".format)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: ([40, 1][i] * 2**30, 48 * 2**30))
    roomy, full = doctor.check_gpu()
    assert roomy.level == OK and "card 0, 40.0 of 48.0 GiB free" in roomy.text
    assert full.level == WARNING and "IMS_PER_BATCH" in full.advice


@pytest.mark.parametrize("driver", [True, False])
def test_no_gpu(driver: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if driver else None)
    (finding,) = doctor.check_gpu()
    assert finding.level == WARNING
    assert ("CUDA_VISIBLE_DEVICES" if driver else "R_18_FPN_small") in finding.advice


@pytest.mark.parametrize(("gib", "level"), [(0.5, WRONG), (5, WARNING), (50, OK)])
def test_room_on_the_disk(gib: float, level: str, tmp_path: Path, monkeypatch) -> None:
    usage = Usage(0, 0, int(gib * 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    (finding,) = doctor.check_disk(tmp_path / "missing" / "run")
    assert finding.level == level and str(tmp_path) in finding.text


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda folder, mode: False)
    (finding,) = doctor.check_disk(tmp_path)
    assert finding.level == WRONG and "cannot be written to" in finding.text


@pytest.mark.parametrize(("gib", "level"), [(0.5, WARNING), (50, OK)])
def test_memory(gib: float, level: str, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "free_memory", lambda: int(gib * 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, int(gib * 2**30)))
    findings = list(doctor.check_memory())
    assert levels(findings, "memory") == [level]
    if Path("/dev/shm").is_dir():
        assert levels(findings, "shared memory") == [level]


def test_free_memory_is_less_than_there_is() -> None:
    free = doctor.free_memory()
    if free is None:
        pytest.skip("the system does not say")
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    assert 0 < free < total


def test_a_data_set_is_counted(data: Path) -> None:
    masks = len(list(data.glob("train/*/class*.tif")))
    first, *others = doctor.check_data(data)
    assert first.level == OK
    assert f"5 annotated images with {masks} masks, 3 test images" in first.text
    assert levels(others, "data") == []


def test_the_channel_order_is_guessed(data: Path, tmp_path: Path) -> None:
    """Synthetic files have red and blue swapped, as the released ones do."""
    (guess,) = [f for f in doctor.check_data(data) if f.name == "channel order"]
    assert guess.level == WARNING and "CHANNEL_ORDER BGR" in guess.advice
    for path in data.glob("train/*/image.tif"):
        (tmp_path / path.parent.name).mkdir()
        swapped = tifffile.imread(path)[:, :, 2::-1]
        tifffile.imwrite(tmp_path / path.parent.name / path.name, swapped, photometric="rgb")
    (guess,) = [f for f in doctor.check_data(tmp_path) if f.name == "channel order"]
    assert guess.level == OK and "RGB" in guess.text


def test_blue_over_red_of_the_darkest_tenth() -> None:
    image = np.full((10, 10, 3), 250, np.uint8)
    image[0] = (60, 20, 90)  # ten of a hundred pixels
    assert doctor.blue_over_red(image) == 30
    assert doctor.blue_over_red(image[:, :, ::-1]) == -30
    assert doctor.blue_over_red(np.full((1, 1, 3), 7, np.uint8)) == 0


def test_grey_images_do_not_tell(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "image.tif", np.arange(256, dtype=np.uint8).reshape(16, 16))
    (guess,) = [f for f in doctor.check_data(tmp_path) if f.name == "channel order"]
    assert guess.level == WARNING and "does not tell" in guess.text


def test_faults_of_the_data_are_listed(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(data, root)
    victim = min(root.glob("train/*/image.tif"))
    victim.write_bytes(victim.read_bytes()[:-200])
    findings = [f for f in doctor.check_data(root) if f.level == WRONG]
    assert len(findings) == 1 and str(victim) in findings[0].text and findings[0].advice
    (missing,) = doctor.check_data(tmp_path / "nowhere")
    assert missing.level == WRONG and "nowhere" in missing.text and missing.advice
    for path in root.glob("train/*/image.tif"):
        path.write_bytes(b"no TIFF")
    write_dataset(tmp_path / "more", SyntheticParameters(train=8, test=0, size=(64, 64)))
    for path in (tmp_path / "more").glob("train/*/image.tif"):
        path.write_bytes(b"no TIFF")
    findings = list(doctor.check_data(tmp_path / "more"))
    assert levels(findings, "data") == [OK] + 6 * [WRONG] and "3 more" in findings[-1].text


def test_the_trial_trains_and_predicts() -> None:
    (finding,) = doctor.check_trial()
    assert finding.level == OK and "loss" in finding.text


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "free memory"),
        (RuntimeError("no kernel image is available\nmore"), "bug"),
    ],
)
def test_a_trial_that_fails(error: Exception, advice: str, monkeypatch) -> None:
    def fail(cfg: object) -> None:
        raise error

    monkeypatch.setattr(doctor, "train_and_predict", fail)
    (finding,) = doctor.check_trial()
    assert finding.level == WRONG and advice in finding.advice
    assert str(error).splitlines()[0] in finding.text and "more" not in finding.text


def test_a_step_that_trains_nothing_is_no_training(monkeypatch) -> None:
    monkeypatch.setattr(torch.optim.Optimizer, "step", lambda self: None)
    monkeypatch.setattr(
        trial, "build_optimizer", lambda cfg, model: torch.optim.Optimizer(model.parameters(), {})
    )
    with pytest.raises(ValueError, match="changed no weight"):
        trial.train_and_predict(trial.trial_config())
