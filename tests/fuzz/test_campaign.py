"""The fuzzer finds what it looks for, and finds none of it in the readers."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from random import Random
from types import ModuleType

import numpy as np
import pytest

from .campaign import Tally, run_campaign, split_runs
from .faulty import KINDS, FaultyTarget
from .mutation import MAX_BYTES, mutate_bytes, mutate_json
from .targets import refusal
from .tiff_files import mutate_tiff, number_fields, tiff_seeds, written
from .worker import GOOD, SHARES, TARGETS, Limits, run_case

RUNS = 2000


def test_no_file_falls_out_of_the_rule(tmp_path: Path) -> None:
    tally = run_campaign(RUNS, 1, tmp_path / "found", targets=["mixed"])["mixed"]
    texts = [path.read_text() for path in tally.findings]
    assert not texts, "\n\n".join(texts[:3])
    assert set(tally.outcomes) == set(GOOD) and tally.outcomes.total() == RUNS
    # Else the changes would be too weak or too wild.
    assert min(tally.outcomes.values()) > 0.1 * RUNS


def test_cases_are_divided_without_a_rest() -> None:
    assert set(SHARES) == set(TARGETS) and sum(SHARES.values()) == pytest.approx(1)
    for names in (list(TARGETS), ["cache"], ["tiff", "config"]):
        for runs in (1, 7, 100_000):
            assert sum(split_runs(runs, names).values()) == runs


# ------------------------------------------------------------------------------- the changes


def test_a_case_is_always_the_same_and_never_all_of_them() -> None:
    seeds = tiff_seeds()
    others = list(seeds.values())
    for name, data in seeds.items():
        before = bytes(data)
        made = [mutate_tiff(Random(number), data, others) for number in range(20)]
        assert made == [mutate_tiff(Random(number), data, others) for number in range(20)]
        assert data == before and len(set(made)) > 10, name
        assert all(len(each) <= MAX_BYTES + 8 for each in made)


def test_small_and_empty_bytes_can_be_changed() -> None:
    for data in (b"", b"I", b"II*\0"):
        for number in range(300):
            mutate_bytes(Random(number), data, [b"", b"abc"])
            mutate_tiff(Random(number), data, [])


def test_json_is_changed_in_a_copy() -> None:
    value = {"a": [1, {"b": "c"}], "d": None}
    made = [mutate_json(Random(number), value) for number in range(100)]
    assert value == {"a": [1, {"b": "c"}], "d": None}
    assert sum(each != value for each in made) > 80


@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"bigtiff": True}])
def test_numbers_of_a_tiff_are_found(options: dict) -> None:
    data = written(np.zeros((5, 300), np.uint8), metadata=None, **options)
    order, numbers, directories = number_fields(data)
    assert order == options.get("byteorder", "<") and len(directories) == 1
    little = "little" if order == "<" else "big"
    found = [int.from_bytes(data[at : at + size], little) for at, size in numbers]
    # Tag 256 (ImageWidth), one of it, 300: the specification's order within an entry.
    assert any(
        found[i] == 256 and found[i + 2] == 1 and 300 in found[i + 3 : i + 5]
        for i in range(len(found) - 4)
    )


# --------------------------------------------------------------- that nothing gets by unseen


OUTCOMES = {
    "good": "read",
    "bad": "refused",
    "crash": "crash",
    "loop": "time",
    "sleep": "time",
    "escape": "escape",
    "write": "escape",
    "memory": "memory",
    "stuck": "hang",
    "wrong": "wrong result",
    "error": "other error",
}


@pytest.mark.slow
def test_each_fault_is_found_and_the_next_case_is_run(tmp_path: Path) -> None:
    limits = Limits(cpu_seconds=1.0, wall_seconds=4.0)
    output = tmp_path / "found"
    tallies = run_campaign(len(KINDS), 3, output, targets=["faulty"], limits=limits)
    assert tallies["faulty"].outcomes == Counter(OUTCOMES[kind] for kind in KINDS)
    assert len(tallies["faulty"].findings) == len(KINDS) - 3
    for number, kind in enumerate(KINDS):
        name = f"faulty-3-{number}-{OUTCOMES[kind].replace(' ', '_')}"
        if OUTCOMES[kind] in GOOD:
            assert not (output / f"{name}.txt").exists()
        else:
            assert "from case.bin" in (output / f"{name}.txt").read_text()
            assert (output / f"{name}.bin").read_text() == kind


@pytest.mark.parametrize("kind", ["good", "bad", "wrong", "error"])
def test_outcome_of_a_case(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "case.bin"
    path.write_text(kind)
    found, detail = run_case(FaultyTarget(tmp_path), path, Limits())
    assert found == OUTCOMES[kind] and bool(detail) == (found not in GOOD)


def test_memory_that_ran_out_is_no_refusal() -> None:
    for cause in (MemoryError(), RuntimeError("can't allocate memory: you tried 99 bytes")):
        error = ValueError("not a checkpoint")
        error.__cause__ = cause
        with pytest.raises(MemoryError):
            refusal(error)
    assert refusal(ValueError("no TIFF")) is False


# --------------------------------------------------------------------------- the command line


@pytest.fixture
def script(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", repository / "tools" / "fuzz.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("found", [True, False])
def test_exit_status_and_table(script, monkeypatch, capsys, tmp_path: Path, found: bool) -> None:
    def campaign(runs: int, seed: int, output: Path, **options: object) -> dict[str, Tally]:
        assert (runs, seed, options["targets"]) == (30, 4, ["tiff", "cache"])
        tally = Tally(Counter(read=10, refused=4), [])
        if found:
            tally.outcomes["crash"] += 1
            tally.findings.append(output / "tiff-4-9-crash.txt")
        return {"tiff": tally, "cache": Tally(Counter(refused=15), [])}

    monkeypatch.setattr(script, "run_campaign", campaign)
    arguments = ["--runs", "30", "--seed", "4", "--output", str(tmp_path)]
    assert script.main([*arguments, "--target", "tiff", "cache"]) == int(found)
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].split() == ["all", "10", "19"] + (
        ["1", "30"] if found else ["29"]
    )
    assert ("tiff-4-9-crash" in printed.err) == found


def test_wrong_usage(script, capsys) -> None:
    for arguments in (["--runs", "0"], ["--target", "gif"], ["--workers", "0"]):
        with pytest.raises(SystemExit) as caught:
            script.main(arguments)
        assert caught.value.code == 2
