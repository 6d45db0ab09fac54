"""Submissions, id maps and cache entries made to do harm, and what becomes of each."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg_d2.data.annotation_cache import AnnotationCache
from cellseg_d2.data.id_map import IdMapEntry, check_in_id_map, read_id_map
from cellseg_d2.data.instances import read_instances
from cellseg_d2.data.layout import scan_root
from cellseg_d2.errors import CellDataError
from cellseg_d2.export.submission_check import check_submission

from .text_targets import predictions, to_json, zipped


def renamed_to_nothing(data: bytes) -> bytes:
    """A zip whose directory gives its one file a name that begins with NUL, which reads as none."""
    name = b"test-results.json"
    return data.replace(name, b"\0" + name[1:])


def with_lzma_dictionary(data: bytes) -> bytes:
    """A zip whose LZMA header asks for 4 GB."""
    at = 30 + len("test-results.json")
    assert data[at : at + 4] == bytes([9, 4, 5, 0])  # version 9.4, five bytes of properties
    return data[: at + 5] + struct.pack("<I", 2**32 - 1) + data[at + 9 :]


ONE = predictions()[:1]


def changed(**fields: object) -> bytes:
    return to_json([{**ONE[0], **fields}])


SUBMISSIONS = {
    "a zip of a nameless file": (renamed_to_nothing(zipped(to_json(ONE))), "no test-results.json"),
    "a zip with an LZMA bomb": (
        with_lzma_dictionary(zipped(to_json(ONE), zipfile.ZIP_LZMA)),
        "neither stored nor deflated",
    ),
    "a zip bomb": (zipped(b"[" + b" " * 30_000_000 + b"]"), "no usual JSON"),
    "half a zip": (zipped(to_json(ONE))[:60], "damaged"),
    "brackets without end": (b"[" * 200_000, "nested too deeply"),
    "a number without end": (b"[" + b"9" * 5_000_000, "not a JSON list"),
    "bytes that are no text": (b"[\xff\xfe]", "not UTF-8"),
    "counts beyond the image": (
        changed(segmentation={"size": [20, 30], "counts": "oooooo0"}),
        "segmentation.counts",
    ),
    "a mask of 10^18 pixels": (
        changed(segmentation={"size": [10**9, 10**9], "counts": "0"}),
        "more than 4294967295 pixels",
    ),
    "a score that is no number": (changed(score=float("nan")), "finite"),
    "a box without end": (changed(bbox=[0, 0, float("inf"), 1]), "finite"),
    "half a character": (changed(image_id="\ud800"), r"'\\ud800' is not an integer"),
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_hostile_submission(tmp_path: Path, name: str) -> None:
    content, message = SUBMISSIONS[name]
    path = tmp_path / "test-results"
    path.write_bytes(content)
    report = check_submission(path)
    assert report.faults
    assert re.search(message, "\n".join(report.lines()))


ENTRY = {"file_name": "a.tif", "id": 1, "height": 5, "width": 7}


@pytest.mark.parametrize(
    "name",
    ["../a.tif", "/etc/passwd", "..", "C:\\a.tif", "a\0.tif", "\ud800.tif", "a\nb.tif", "a\u2028"],
)
def test_names_that_lead_elsewhere_or_cannot_be_printed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps([{**ENTRY, "file_name": name}]))
    with pytest.raises(CellDataError, match="file name|cannot be printed"):
        read_id_map(path)


def test_an_id_map_that_is_a_pipe_or_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(CellDataError, match="folder, device or pipe"):
            read_id_map(path)


def test_an_image_that_is_a_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "a.tif").symlink_to("b.tif")
    (tmp_path / "b.tif").symlink_to("a.tif")
    with pytest.raises(CellDataError, match="leads nowhere|out of its folder"):
        check_in_id_map(tmp_path / "a.tif", (5, 7), {"a": IdMapEntry(**ENTRY)})


@pytest.fixture
def cached(tmp_path: Path):
    """A cache, the key of its one entry, and the entry's path."""
    folder = tmp_path / "root" / "a"
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "image.tif", np.zeros((20, 30, 3), np.uint8), photometric="rgb")
    tifffile.imwrite(folder / "class1.tif", np.ones((20, 30), np.uint8))
    (image,) = scan_root(tmp_path / "root").folders
    cache = AnnotationCache(tmp_path / "cache", "ids", 1)
    key = cache.key(image)
    cache.store(key, read_instances(image))
    (path,) = (tmp_path / "cache").iterdir()
    return cache, key, path


@pytest.mark.parametrize("size", [2**31, 2**63 - 1, 10**400])
def test_a_cached_image_of_no_possible_size(cached, caplog, size: int) -> None:
    cache, key, path = cached
    _, line, body = path.read_bytes().split(b"\n", 2)
    for side in ("height", "width"):
        header = {**json.loads(line), side: size}
        # Its boxes would come out of 32 bits as others.
        table = np.frombuffer(body[:48], "<i8").copy()
        table[4 if side == "width" else 5] = 2**32 + 5
        content = json.dumps(header).encode() + b"\n" + table.tobytes() + body[48:]
        path.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        assert cache.load(key) is None
        assert "unusable" in caplog.text
        caplog.clear()


def test_a_cached_entry_that_is_a_pipe(cached, caplog) -> None:
    cache, key, path = cached
    path.unlink()
    os.mkfifo(path)
    assert cache.load(key) is None and "it is no file" in caplog.text
