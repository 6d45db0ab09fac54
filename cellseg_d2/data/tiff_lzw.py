"""LZW streams, looked through before they are decoded.

After a Clear code, imagecodecs' decoder (up to 2026.3.6 at least) takes any code as an entry of
its table, which then holds whatever was in memory: one damaged byte ends the process. So every
stream is checked here for what must follow a Clear code. It takes about as long as the decoding.

The coding is that of the TIFF 6.0 specification (Adobe, 1992), section 13.
"""

from __future__ import annotations

import numpy as np

_CLEAR, _END = 256, 257
_FIRST, _FULL = 258, 4096

# Bit widths of the codes after a Clear code: the first enters nothing in the table, each other one
# an entry, and the width grows one entry early.
_ENTRIES = np.concatenate([[0], np.arange(_FIRST, _FULL + 1)])
_WIDTHS = (9 + np.searchsorted([511, 1023, 2047], _ENTRIES, side="right")).astype(np.int64)
_ENDS = np.cumsum(_WIDTHS)
_STARTS = _ENDS - _WIDTHS
_MASKS = ((1 << _WIDTHS) - 1).astype(np.uint32)
# By the position in its byte of the first bit: for each code its first byte, and how far the four
# bytes from there are to be shifted.
_BYTES = [(_STARTS + phase) >> 3 for phase in range(8)]
_SHIFTS = [(32 - _WIDTHS - ((_STARTS + phase) & 7)).astype(np.uint32) for phase in range(8)]

# Codes are looked at in parts that grow, for streams that clear the table often.
_PARTS = (0, 128, len(_WIDTHS))
# Writers clear when the table is full or serves badly; a stream of Clear codes is a trap.
_FREE_CLEARS, _BYTES_PER_CLEAR = 64, 32


def find_lzw_fault(data: bytes) -> str | None:
    """Find what would lead an LZW decoder astray.

    Args:
        data: of one strip or tile, its bits in the order of the specification.

    Returns:
        what is wrong, None for a stream that can be decoded or that its decoder refuses itself.
    """
    if data[:1] != b"\x80" or len(data) < 2 or data[1] & 0x80:
        return "no Clear code at its start"
    # For each byte the number that it and the three after it make.
    overlapping: np.ndarray = np.ndarray(len(data), ">u4", data + b"\0\0\0", strides=(1,))
    words = overlapping.astype(np.uint32)
    num_bits, position = 8 * len(data), 9
    for _ in range(_FREE_CLEARS + len(data) // _BYTES_PER_CLEAR):
        code, index = _next_special(words, position, num_bits)
        if index == 0 and code > _END:
            return f"code {code} after a Clear code"
        if code != _CLEAR:
            return None
        position += int(_ENDS[index])
    return "more Clear codes than any writer sets"


def _next_special(words: np.ndarray, position: int, num_bits: int) -> tuple[int, int]:
    """The next code that is Clear or End, or the first one where that is no literal.

    Args:
        words: for each byte the number that it and the three after it make.
        position: of the bit after a Clear code.
        num_bits: in the stream.

    Returns:
        the code, `_END` where there is none, and its index, from 0.
    """
    first, phase = position >> 3, position & 7
    available = int(np.searchsorted(_ENDS, num_bits - position, side="right"))
    for start, stop in zip(_PARTS, _PARTS[1:], strict=False):
        part = slice(start, min(stop, available))
        codes = words[first:].take(_BYTES[phase][part], mode="clip")  # faster; none is outside
        codes >>= _SHIFTS[phase][part]
        codes &= _MASKS[part]
        if start == 0 and len(codes) and codes[0] > _END:
            return int(codes[0]), 0
        special = codes >> 1 == _CLEAR >> 1  # 256 or 257
        found = int(special.argmax()) if len(codes) else 0
        if len(codes) and special[found]:
            return int(codes[found]), start + found
        if stop >= available:
            break
    return _END, 0
