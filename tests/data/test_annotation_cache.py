import hashlib
import json
import logging
import os
import pickle
import shutil
import threading

import numpy as np
import pytest
import tifffile

from cellseg_d2.data import annotation_cache
from cellseg_d2.data.annotation_cache import AnnotationCache
from cellseg_d2.data.instances import read_instances
from cellseg_d2.data.layout import scan_root


@pytest.fixture
def image(tmp_path):
    folder = tmp_path / "root" / "a"
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "image.tif", np.zeros((20, 30, 3), np.uint8), photometric="rgb")
    label_map = np.zeros((20, 30), np.uint16)
    label_map[2:5, 3:9] = 4
    label_map[10:18, 0:30] = 7
    tifffile.imwrite(folder / "class1.tif", label_map)
    tifffile.imwrite(folder / "class3.tif", np.zeros_like(label_map))
    return scan_root(tmp_path / "root").folders[0]


@pytest.fixture
def cache(tmp_path):
    return AnnotationCache(tmp_path / "cache", "ids", 1)


@pytest.fixture
def entry(cache, image, tmp_path):
    """The path of a good entry."""
    cache.store(cache.key(image), read_instances(image))
    (path,) = (tmp_path / "cache").iterdir()
    return path


def same(one, other):
    assert (one.height, one.width, len(one.layers)) == (
        other.height,
        other.width,
        len(other.layers),
    )
    for a, b in zip(one.layers, other.layers, strict=True):
        assert (a.category, a.counts, a.num_dropped) == (b.category, b.counts, b.num_dropped)
        for key in ("ids", "boxes", "areas"):
            left, right = getattr(a, key), getattr(b, key)
            assert left.dtype == right.dtype and left.shape == right.shape
            np.testing.assert_array_equal(left, right)
            assert left.flags.writeable == right.flags.writeable
    return True


def test_round_trip(cache, image, entry):
    assert same(cache.load(cache.key(image)), read_instances(image))


def test_absent_entry_is_a_silent_miss(cache, image, caplog):
    assert cache.load(cache.key(image)) is None
    assert not caplog.records


@pytest.mark.parametrize("name", ["image.tif", "class1.tif", "class3.tif"])
def test_key_follows_every_file(cache, image, entry, name):
    path = image.image_file.parent / name
    key = cache.key(image)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    by_time = cache.key(image)
    with open(path, "ab") as file:
        file.write(b"\0")
    os.utime(path, ns=(0, by_time["files"][name][1]))
    by_size = cache.key(image)
    assert key != by_time != by_size != key
    assert cache.load(key) is not None
    assert cache.load(by_time) is None and cache.load(by_size) is None


def test_key_follows_the_set_of_files(cache, image, entry):
    (image.image_file.parent / "class3.tif").unlink()
    assert cache.key(image) is None
    fewer = scan_root(image.image_file.parent.parent).folders[0]
    assert cache.load(cache.key(fewer)) is None


def test_rule_area_and_version_have_entries_of_their_own(tmp_path, image, entry, monkeypatch):
    for rule, area in (("components", 1), ("ids", 2)):
        other = AnnotationCache(tmp_path / "cache", rule, area)
        assert other.load(other.key(image)) is None
        other.store(other.key(image), read_instances(image, rule, area))
    assert len(list((tmp_path / "cache").iterdir())) == 3
    monkeypatch.setattr(annotation_cache, "_VERSION", 2)
    newer = AnnotationCache(tmp_path / "cache", "ids", 1)
    assert newer.load(newer.key(image)) is None


def test_a_changed_image_replaces_its_entry(cache, image, entry, tmp_path):
    tifffile.imwrite(image.label_files[0], np.ones((20, 30), np.uint8))
    cache.store(cache.key(image), read_instances(image))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [entry.name]
    assert cache.load(cache.key(image)).layers[0].ids.tolist() == [1]


def test_folders_of_the_same_name_are_told_apart(cache, image, entry, tmp_path):
    shutil.copytree(tmp_path / "root", tmp_path / "copy", copy_function=shutil.copy2)
    assert cache.load(cache.key(scan_root(tmp_path / "copy").folders[0])) is None


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def sealed(content):
    """An entry with a good checksum."""
    payload = content if isinstance(content, bytes) else json.dumps(content).encode()
    return hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: b"",
        lambda good: good[: len(good) // 2],
        lambda good: good[:-1] + bytes([good[-1] ^ 1]),
        lambda good: good + b" ",
        lambda good: good[:70] + bytes([good[70] ^ 4]) + good[71:],
        lambda good: os.urandom(500),
        lambda good: pickle.dumps(Bomb()),
        lambda good: sealed(pickle.dumps(Bomb())),
        lambda good: sealed(b"[" * 100_000),
        lambda good: sealed([]),
        lambda good: sealed(None),
        lambda good: sealed({}),
    ],
)
def test_damaged_entry_is_a_miss(cache, image, entry, damage, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry.write_bytes(damage(entry.read_bytes()))
    assert cache.load(cache.key(image)) is None
    assert str(entry) in caplog.text and caplog.records[0].levelno == logging.WARNING
    assert not (tmp_path / "exploded").exists()
    cache.store(cache.key(image), read_instances(image))
    assert same(cache.load(cache.key(image)), read_instances(image))


def take_apart(entry):
    """The header, the table of the first class, and the rest of the body."""
    _, line, body = entry.read_bytes().split(b"\n", 2)
    header = json.loads(line)
    size = 8 * 6 * header["layers"][0]["instances"]
    table = np.frombuffer(body[:size], "<i8").reshape(-1, 6).copy()
    assert table.tolist() == [[4, 18, 3, 2, 9, 5], [7, 240, 0, 10, 30, 18]]
    return header, table, body[size:]


def put_together(entry, header, table, rest):
    entry.write_bytes(sealed(json.dumps(header).encode() + b"\n" + table.tobytes() + rest))


def test_taken_apart_and_put_together_it_is_good(cache, image, entry):
    good = entry.read_bytes()
    put_together(entry, *take_apart(entry))
    assert entry.read_bytes() == good


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("instances", 1),
        ("instances", 3),
        ("instances", 10**18),
        ("instances", "2"),
        ("counts_size", 0),
        ("counts_size", 10**18),
        ("counts_size", None),
        ("category", -1),
        ("category", "0"),
        ("num_dropped", 1.5),
    ],
)
def test_wrong_headers_under_a_good_checksum_are_a_miss(cache, image, entry, field, value, caplog):
    header, table, rest = take_apart(entry)
    header["layers"][0][field] = value
    put_together(entry, header, table, rest)
    assert cache.load(cache.key(image)) is None
    assert "unusable" in caplog.text


@pytest.mark.parametrize("change", [lambda r: r + b"a", lambda r: r[1:], lambda r: b"\0" + r[1:]])
def test_wrong_run_lengths_under_a_good_checksum_are_a_miss(cache, image, entry, change, caplog):
    header, table, rest = take_apart(entry)
    put_together(entry, header, table, change(rest))
    assert cache.load(cache.key(image)) is None
    assert "unusable" in caplog.text


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [
        (0, 0, 0),  # the background's id
        (1, 0, 4),  # the id of the row before
        (1, 0, 2**31),
        (0, 1, 0),  # no area
        (0, 1, 601),  # more than the image
        (0, 2, -1),
        (0, 2, 9),  # x0 = x1
        (1, 3, 18),  # y0 = y1
        (1, 4, 31),
        (1, 5, 21),
    ],
)
def test_wrong_numbers_under_a_good_checksum_are_a_miss(
    cache, image, entry, row, column, value, caplog
):
    header, table, rest = take_apart(entry)
    table[row, column] = value
    put_together(entry, header, table, rest)
    assert cache.load(cache.key(image)) is None
    assert "out of range" in caplog.text


def test_every_single_byte_matters(cache, image, entry):
    good = entry.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(good), 100):
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        entry.write_bytes(bad)
        assert cache.load(cache.key(image)) is None


def test_folder_that_cannot_be_written(tmp_path, image, caplog):
    (tmp_path / "file").touch()
    cache = AnnotationCache(tmp_path / "file" / "cache", "ids", 1)
    for _ in range(2):
        cache.store(cache.key(image), read_instances(image))
    assert len(caplog.records) == 1 and "not cached" in caplog.text


def test_failed_write_leaves_nothing_behind(cache, image, entry, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    good = entry.read_bytes()
    monkeypatch.setattr(os, "replace", refuse)
    cache.store(cache.key(image), read_instances(image))
    assert "No space left" in caplog.text
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [entry.name]
    assert entry.read_bytes() == good


def test_writers_and_readers_at_once(image, tmp_path, caplog):
    instances = read_instances(image)
    caches = [AnnotationCache(tmp_path / "cache", "ids", 1) for _ in range(4)]
    key = caches[0].key(image)
    caches[0].store(key, instances)
    seen = []

    def work(cache):
        for _ in range(30):
            cache.store(key, instances)
            seen.append(cache.load(key))

    threads = [threading.Thread(target=work, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 120 and all(same(instances, found) for found in seen)
    assert len(list((tmp_path / "cache").iterdir())) == 1 and not caplog.records
