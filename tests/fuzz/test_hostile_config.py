"""Configs made to do harm, one by one, and the error that each is refused with."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellseg_d2.config import load_config
from cellseg_d2.config_file import MAX_BYTES
from cellseg_d2.engine.ablation_file import read_ablation
from cellseg_d2.errors import ConfigError

LAUGHS = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))
MERGES = "\n".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 10))

HOSTILE = {
    "an object that runs a program": (
        "SEED: !!python/object/apply:os.system ['touch exploded']",
        "python/object/apply:os.system",
    ),
    "an object that is made": ("SEED: !!python/object/new:os.mkdir [exploded]", "python/object"),
    "a name of Python's": ("SEED: !!python/name:os.system", "python/name"),
    "a module of Python's": ("SEED: !!python/module:antigravity", "python/module"),
    "a billion laughs": (f"a0: &a0 [ha]\n{LAUGHS}", "its aliases stand for"),
    "a billion merged keys": (f"m0: &m0 {{k: v}}\n{MERGES}", "its aliases stand for"),
    "a long text, many times": (
        f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1000)}]",
        "its aliases stand for",
    ),
    "a list that holds itself": ("SEED: &a [*a]", "its aliases stand for"),
    "a mapping that holds itself": ("SEED: &a {k: *a}", "its aliases stand for"),
    "brackets without end": ("SEED: " + "[" * 5000, "nested too deep"),
    "more text than a config": ("#" * (MAX_BYTES + 1), "more than"),
    "a number that is none": ("SEED: !!int ''", "a.yaml: "),
    "a truth that is none": ("SEED: !!bool x", "a.yaml: "),
    "a time that is none": ("SEED: !!timestamp x", "a.yaml: "),
    "a date that is none": ("SEED: 2001-99-99", "a.yaml: "),
    "bytes that are no text": (b"SEED: \xff\xfe", "a.yaml: "),
    "a control character": ("SEED: \0", "a.yaml: "),
}
CONFIGS = {
    "a base that is the file": ("_BASE_: a.yaml", "leads back to this file"),
    "a base that is missing": ("_BASE_: gone.yaml", "gone.yaml: no such file"),
    "a base that is a folder": ("_BASE_: .", "no such file"),
    "a base without end": ("_BASE_: /dev/zero", "/dev/zero: no such file"),
    "a base on the network": ("_BASE_: https://localhost/x.yaml", "no such file"),
    "a base that is a list of mappings": ("_BASE_: [{a: b}]", "no name of a file"),
    "no device": ("MODEL: {DEVICE: null}", "MODEL.DEVICE has no value"),
    "no rate": ("SOLVER: {BASE_LR:}", "SOLVER.BASE_LR has no value"),
    "no epochs": ("SOLVER: {MAX_EPOCHS: ~}", "SOLVER.MAX_EPOCHS has no value"),
    "classes that are numbers": ("DATASETS: {CELL: {CLASS_NAMES: [1]}}", "of another type"),
    "a version before any": ("VERSION: -3", "a.yaml: "),
    "a version of text": ("VERSION: x", "a.yaml: "),
    "a pattern too large": (
        "DATASETS: {CELL: {GROUP_PATTERN: 'a{99999999999999999999}'}}",
        "no regular expression",
    ),
    "a pattern too deep": (
        f"DATASETS: {{CELL: {{GROUP_PATTERN: '{'(' * 3000}{')' * 3000}'}}}}",
        "no regular expression",
    ),
}


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "a.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("read", [load_config, read_ablation])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml(tmp_path: Path, monkeypatch, name: str, read) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[name]
    path = write(tmp_path, content)
    with pytest.raises(ConfigError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 10_000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", CONFIGS)
def test_hostile_config(tmp_path: Path, name: str) -> None:
    content, message = CONFIGS[name]
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, content))


def test_two_bases_that_lead_to_each_other(tmp_path: Path) -> None:
    path = write(tmp_path, "_BASE_: b.yaml")
    (tmp_path / "b.yaml").write_text("_BASE_: [c.yaml, ./a.yaml]")
    (tmp_path / "c.yaml").write_text("SEED: 3")
    with pytest.raises(ConfigError, match="leads back to this file"):
        load_config(path)
    (tmp_path / "b.yaml").write_text("_BASE_: [c.yaml, ./c.yaml]")
    assert load_config(path).SEED == 3


def test_anchors_in_moderation_are_followed(tmp_path: Path) -> None:
    path = write(tmp_path, "SOLVER: {STEPS: &a [3, 5]}\nTEST: {AUG: {MIN_SIZES: *a}}")
    assert tuple(load_config(path).TEST.AUG.MIN_SIZES) == (3, 5)
