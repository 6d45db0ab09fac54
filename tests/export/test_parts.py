"""A part is taken again only as the answer to the same question."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cellseg_d2 import CellDataError, load_config
from cellseg_d2.export.parts import Parts, run_fingerprint

ENTRIES = [{"image_id": 3, "bbox": [0.0, 1.5, 2.0, 3.0], "score": 0.1234567, "category_id": 2}] * 2


@pytest.fixture
def item(tmp_path: Path) -> dict:
    path = tmp_path / "tile.tif"
    path.write_bytes(b"pixels")
    return {"file_name": str(path), "image_id": 3, "height": 5, "width": 6}


def finish(parts: Parts, item: dict) -> None:
    with parts.open(item) as part:
        part.add(ENTRIES[:1])
        part.add(ENTRIES[1:])


def test_entries_come_back_as_they_were(tmp_path: Path, item: dict) -> None:
    parts = Parts(tmp_path / "out", "run")
    assert not parts.is_done(item)
    finish(parts, item)
    assert parts.is_done(item)
    assert list(parts.entries(item)) == ENTRIES
    assert [list(entry) for entry in parts.entries(item)] == [list(ENTRIES[0])] * 2
    # Images that are added to a folder move the ids of the others.
    assert {entry["image_id"] for entry in parts.entries({**item, "image_id": 8})} == {8}
    parts.remove()
    parts.remove()
    assert not (tmp_path / "out" / "parts").exists()


def test_an_image_without_cells_is_done_too(tmp_path: Path, item: dict) -> None:
    parts = Parts(tmp_path / "out", "run")
    with parts.open(item):
        pass
    assert parts.is_done(item) and list(parts.entries(item)) == []


def test_another_question_is_not_answered(tmp_path: Path, item: dict) -> None:
    finish(Parts(tmp_path / "out", "run"), item)
    assert not Parts(tmp_path / "out", "another run").is_done(item)
    parts = Parts(tmp_path / "out", "run")
    modified = os.stat(item["file_name"]).st_mtime_ns
    Path(item["file_name"]).write_bytes(b"others")
    os.utime(item["file_name"], ns=(modified + 1, modified + 1))
    assert not parts.is_done(item)
    with pytest.raises(CellDataError, match="tile.jsonl"):
        list(parts.entries(item))
    Path(item["file_name"]).write_bytes(b"more pixels")
    os.utime(item["file_name"], ns=(modified, modified))
    assert not parts.is_done(item)


@pytest.mark.parametrize("text", ["", "{", '{"run": "run"}\n', "[]\n"])
def test_what_is_no_part_is_no_answer(tmp_path: Path, item: dict, text: str) -> None:
    parts = Parts(tmp_path / "out", "run")
    parts.folder.mkdir(parents=True)
    (parts.folder / "tile.jsonl").write_text(text)
    assert not parts.is_done(item)


def test_a_failure_on_the_way_leaves_no_part(tmp_path: Path, item: dict) -> None:
    finish(Parts(tmp_path / "out", "another run"), item)
    parts = Parts(tmp_path / "out", "run")
    with pytest.raises(RuntimeError), parts.open(item) as part:
        part.add(ENTRIES)
        raise RuntimeError("the model failed")
    with pytest.raises(ValueError, match="JSON"), parts.open(item) as part:
        part.add([{"score": float("nan")}])
    assert not parts.is_done(item) and list(parts.folder.iterdir()) == []


def test_the_fingerprint_follows_what_changes_an_answer(tmp_path: Path) -> None:
    weights, other = tmp_path / "a.pth", tmp_path / "b.pth"
    weights.write_bytes(b"one")
    other.write_bytes(b"two")
    cfg = load_config(None, ["MODEL.WEIGHTS", str(weights)])
    cfg.freeze()
    first = run_fingerprint(cfg, [str(weights)], labels=True)
    assert json.dumps(first) and len(first) == 64

    moved = tmp_path / "moved.pth"
    moved.write_bytes(b"one")
    elsewhere = load_config(None, ["MODEL.WEIGHTS", str(moved), "OUTPUT_DIR", "elsewhere"])
    assert run_fingerprint(elsewhere, [str(moved)], labels=True) == first

    tiled = load_config(None, ["MODEL.WEIGHTS", str(weights), "TEST.TILE.SIZE", "512"])
    different = {
        run_fingerprint(cfg, [str(weights)], labels=False),
        run_fingerprint(cfg, [str(other)], labels=True),
        run_fingerprint(cfg, [str(weights), str(other)], labels=True),
        run_fingerprint(cfg, [str(other), str(weights)], labels=True),
        run_fingerprint(tiled, [str(weights)], labels=True),
    }
    assert len(different) == 5 and first not in different


def test_the_fingerprint_needs_the_weights(tmp_path: Path) -> None:
    with pytest.raises(CellDataError, match="no.pth"):
        run_fingerprint(load_config(), [str(tmp_path / "no.pth")])
