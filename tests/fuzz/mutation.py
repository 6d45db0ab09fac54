"""Changes to bytes and to JSON values, each drawn from a random generator that is handed in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from random import Random
from typing import Any

# Where sizes, signs and offsets overflow, or are just off.
INTEGERS = sorted(
    {0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 32, 64, 100, 1000, 4096, 32946, 32773}
    | {2**bits + step for bits in (7, 8, 15, 16, 24, 31, 32, 63, 64) for step in (-1, 0, 1)}
)
MAX_BYTES = 1 << 20


def mutate_bytes(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Apply one to six changes.

    Args:
        rng: draws the changes.
        data: the bytes, left as they are.
        others: files to splice with.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        data = rng.choice(_CHANGES)(rng, data, others)[:MAX_BYTES]
    return data


def _flip_bits(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 32)) if data else 0):
        changed[_position(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_bytes(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 4, 16)) if data else 0):
        changed[_position(rng, data)] = rng.choice((0, 255, 10, 32, rng.randrange(256)))
    return bytes(changed)


def _set_integer(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return write_integer(data, _position(rng, data), rng.choice((2, 4, 8)), pick_integer(rng), rng)


def _truncate(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _duplicate_block(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, length = rng.randrange(len(data) + 1), rng.choice((1, 4, 16, 256, 4096))
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[start : start + length] * rng.choice((1, 1, 2, 50)) + data[at:]


def _delete_block(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 2, 4, 12, 64)) :]


def _overwrite_block(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, length = rng.randrange(len(data) + 1), rng.choice((2, 8, 12, 64))
    at = rng.randrange(len(data) + 1)
    block = data[start : start + length]
    return data[:at] + block + data[at + len(block) :]


def _splice(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others) if others else data
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


_CHANGES = (
    _flip_bits,
    _set_bytes,
    _set_integer,
    _truncate,
    _duplicate_block,
    _delete_block,
    _overwrite_block,
    _splice,
)


def pick_integer(rng: Random) -> int:
    """Return an integer that overflows something, or any."""
    return rng.choice(INTEGERS) if rng.random() < 0.8 else rng.getrandbits(rng.choice((8, 16, 32)))


def write_integer(data: bytes, position: int, size: int, value: int, rng: Random) -> bytes:
    """Return the bytes with an integer of `size` bytes over what was at a position."""
    order = rng.choice(("little", "big"))
    number = (value % (1 << 8 * size)).to_bytes(size, order)  # type: ignore[arg-type]
    return data[:position] + number + data[position + size :]


def _position(rng: Random, data: bytes) -> int:
    # Heads and tails hold the structure of most formats.
    length = max(1, len(data))
    kind = rng.random()
    if kind < 0.35:
        return rng.randrange(min(length, 400))
    if kind < 0.5:
        return length - 1 - rng.randrange(min(length, 400))
    return rng.randrange(length)


def nested(depth: int) -> Any:
    """Return a list in a list, so many deep."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 5, 0.5, -0.0, 1e308, -1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf"), 2**31, 2**53, 2**63 - 1, 2**63, -(2**64), 10**18),
    *(10**25, 10**300, "", "0", "1", "\0", "\ud800", "é\u202e", "a" * 5000, "9" * 5000),
    *("..", "../x.tif", "/etc/passwd", "C:\\x.tif", "~", "a.tif", "image.tif", "{}", "%s%n"),
    *([], {}, [[]], [1, 2], [0, 0, 0, 0], {"": None}, {"a": {"b": []}}, nested(60), nested(400)),
)


def mutate_json(rng: Random, value: Any) -> Any:
    """Return the value with one to four parts replaced, removed, repeated or renamed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = _change_part(rng, value)
    return value


def _change_part(rng: Random, value: Any) -> Any:
    if isinstance(value, list) and value and rng.random() < 0.85:
        index = rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.1:
            del value[index]
        elif kind < 0.2:
            value.insert(rng.randrange(len(value) + 1), copy.deepcopy(value[index]))
        else:
            value[index] = _change_part(rng, value[index])
        return value
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.08:
            del value[key]
        elif kind < 0.14:
            value[rng.choice(("", "id", "a" * 300, "\0", f"{key} "))] = value.pop(key)
        elif kind < 0.2:
            value[key] = copy.deepcopy(value[rng.choice(list(value))])
        else:
            value[key] = _change_part(rng, value[key])
        return value
    if isinstance(value, str) and value and rng.random() < 0.5:
        index = rng.randrange(len(value))
        inserted = "".join(chr(rng.randrange(40, 128)) for _ in range(rng.choice((0, 1, 3, 20))))
        return value[:index] + inserted + value[index + rng.choice((0, 1, 2)) :]
    if type(value) in (int, float) and rng.random() < 0.4:
        return rng.choice((value + 1, value - 1, -value, value * 1000, value / 3))
    return copy.deepcopy(rng.choice(VALUES))
