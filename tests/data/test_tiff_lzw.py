"""The check of LZW streams, against a decoder that takes one code after the other."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from cellseg_d2.data.tiff import read_image, read_label_map
from cellseg_d2.data.tiff_lzw import find_lzw_fault
from cellseg_d2.errors import CellDataError

CLEAR, END = 256, 257


def packed(codes: list[tuple[int, int]]) -> bytes:
    """(code, bits) in a row."""
    bits = "".join(f"{code:0{width}b}" for code, width in codes)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def codes_of(data: bytes) -> Iterator[tuple[int, bool]]:
    """The codes of a stream, and whether a Clear code came before: the specification's loop."""
    bits = "".join(f"{byte:08b}" for byte in data)
    position, width, entries, cleared = 0, 9, 258, False
    while position + width <= len(bits):
        code = int(bits[position : position + width], 2)
        position += width
        yield code, cleared
        if code == END or entries > 4096:
            return
        if code == CLEAR:
            width, entries, cleared = 9, 258, True
        elif cleared:
            cleared = False
        else:
            entries += 1
            width = 9 + (entries >= 511) + (entries >= 1023) + (entries >= 2047)


def bad_after_clear(data: bytes) -> bool:
    return any(cleared and code > END for code, cleared in codes_of(data))


def streams() -> list[bytes]:
    """Sound streams: short, full of repeats, and with the table filled several times."""
    rng = np.random.default_rng(5)
    contents = [b"a", b"ab" * 300, bytes(70_000), rng.integers(0, 256, 9000, np.uint8).tobytes()]
    contents.append(rng.integers(0, 3, 30_000, np.uint8).tobytes())
    return [imagecodecs.lzw_encode(content) for content in contents]


@pytest.mark.parametrize("number", range(5))
def test_sound_streams_pass(number: int) -> None:
    assert find_lzw_fault(streams()[number]) is None


def random_stream(rng: np.random.Generator) -> bytes:
    """Codes of any value, each in the width that its decoder expects, Clear codes among them."""
    codes, width, entries, cleared = [(CLEAR, 9)], 9, 258, True
    spacing = int(rng.choice([3, 40, 300, 2500, 10**9]))
    for _ in range(rng.integers(1, 6000)):
        if cleared:
            code = int(rng.integers(0, 256) if rng.random() < 0.9 else rng.integers(0, 512))
        else:
            code = CLEAR if rng.integers(spacing) == 0 else int(rng.integers(0, 256))
        codes.append((code, width))
        if code == CLEAR:
            width, entries, cleared = 9, 258, True
        elif cleared:
            cleared = False
        elif entries < 4096:
            entries += 1
            width = 9 + (entries >= 511) + (entries >= 1023) + (entries >= 2047)
    return packed(codes)


def test_it_finds_what_a_loop_over_the_codes_finds() -> None:
    rng = np.random.default_rng(6)
    verdicts = []
    for data in streams()[1:]:
        for _ in range(20):
            changed = bytearray(data[: rng.integers(3, min(len(data), 12_000))])
            for _ in range(rng.integers(1, 5)):
                changed[rng.integers(2, len(changed))] = rng.integers(0, 256)
            fault = find_lzw_fault(bytes(changed))
            assert (fault is not None) == bad_after_clear(bytes(changed))
    for _ in range(100):
        data = random_stream(rng)
        fault = find_lzw_fault(data)
        if "more Clear codes" not in str(fault):
            verdicts.append(fault is not None)
            assert verdicts[-1] == bad_after_clear(data)
    assert 20 < sum(verdicts) < len(verdicts) - 20


@pytest.mark.parametrize("code", [258, 259, 300, 511])
def test_a_table_entry_after_clear_is_found(code: int) -> None:
    assert find_lzw_fault(packed([(CLEAR, 9), (code, 9), (END, 9)])) == (
        f"code {code} after a Clear code"
    )
    later = [(CLEAR, 9), (7, 9), (258, 9), (CLEAR, 9), (CLEAR, 9), (code, 9)]
    assert "after a Clear code" in str(find_lzw_fault(packed(later)))
    assert find_lzw_fault(packed([(CLEAR, 9), (7, 9), (END, 9), (CLEAR, 9), (code, 9)])) is None


def test_streams_that_do_not_begin_or_never_stop_clearing() -> None:
    assert "no Clear code" in str(find_lzw_fault(b""))
    assert "no Clear code" in str(find_lzw_fault(b"\x80"))
    assert "no Clear code" in str(find_lzw_fault(b"\x00\x01\x04\x08"))  # the bit order of TIFF 5
    assert find_lzw_fault(packed([(CLEAR, 9)])) is None
    assert "more Clear codes" in str(find_lzw_fault(packed([(CLEAR, 9)] * 5000)))


def lzw_file(path: Path, stream: bytes) -> Path:
    tifffile.imwrite(path, np.zeros((16, 16), np.uint8), compression="lzw", rowsperstrip=16)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tags = file.pages.first.tags
        offset, count = tags[273].valueoffset, tags[279].valueoffset
        assert tags[273].dtype == 4 and tags[279].dtype in (3, 4)
    struct.pack_into("<I", content, offset, len(content))
    struct.pack_into("<H", content, count, len(stream))
    path.write_bytes(content + stream)
    return path


def test_readers_refuse_what_ends_the_process(tmp_path: Path) -> None:
    sound = imagecodecs.lzw_encode(bytes(range(256)))
    for read in (read_image, read_label_map):
        path = lzw_file(tmp_path / "a.tif", packed([(CLEAR, 9), (300, 9), (300, 9), (END, 9)]))
        with pytest.raises(CellDataError, match="strip or tile 0 whose LZW data.*code 300"):
            read(path)
        assert read(lzw_file(tmp_path / "a.tif", sound)).max() == 255


HOSTILE = """
import random, sys, imagecodecs
from cellseg_d2.data.tiff_lzw import find_lzw_fault
rng = random.Random(1)
base = imagecodecs.lzw_encode(bytes(rng.randrange(8) for _ in range(700)))
passed = 0
for _ in range(int(sys.argv[1])):
    data = bytearray(base)
    for _ in range(rng.choice((1, 2, 4))):
        data[rng.randrange(min(len(data), rng.choice((4, 40, 1000))))] = rng.randrange(256)
    if find_lzw_fault(bytes(data)) is None:
        passed += 1
        try:
            imagecodecs.lzw_decode(bytes(data), out=700)
        except RuntimeError:
            pass
print(passed)
"""


def test_what_passes_does_not_end_the_process(repository: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", HOSTILE, "20000"], cwd=repository, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 2000
