"""COCO's compressed run lengths, decoded strictly and without ever holding a whole mask.

`pycocotools` trusts the text it decodes: characters out of range, runs that sum to more than the
image, or a missing last character make it read or write where it should not. What comes from a
file is decoded here, and handed on only when it describes a mask of the stated size. The format
is that of `rleToString` and `rleFrString` in pycocotools' `maskApi.c`.

Shapes: H and W are the mask's height and width; R is its number of runs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Seven characters hold 35 bits with sign, more than any difference of two runs in an image that
# fits in memory; longer groups would shift past the 64 bits that pycocotools keeps them in.
_MAX_GROUP = 7


def decode_counts(counts: str | bytes, size: tuple[int, int]) -> NDArray[np.int64]:
    """Decodes a compressed run-length string.

    Args:
        counts: the text of a COCO RLE.
        size: (H, W) of the mask, in pixels.

    Returns:
        (R,) int64 run lengths, background first, in column-major order, summing to H·W.

    Raises:
        ValueError: the text does not describe a mask of this size; the message says why.
    """
    try:
        data = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} of counts is not ASCII") from None
    if not data:
        raise ValueError("counts is empty")
    codes = np.frombuffer(data, dtype=np.uint8) - np.uint8(48)  # below '0' wraps to above 63
    if codes.max() > 63:
        position = int(np.argmax(codes > 63))
        raise ValueError(f"character {position} of counts is outside '0' to 'o'")
    last = np.flatnonzero(codes < 32)  # bit 5 says that the number goes on
    if last.size == 0 or last[-1] != codes.size - 1:
        raise ValueError("counts ends within a number")

    first = np.empty_like(last)
    first[0] = 0
    first[1:] = last[:-1] + 1
    lengths = last - first + 1
    if lengths.max() > _MAX_GROUP:
        raise ValueError("counts holds a number too large for any image")
    shifts = 5 * (np.arange(codes.size) - np.repeat(first, lengths))
    runs = np.add.reduceat((codes & 31).astype(np.int64) << shifts, first)
    runs -= np.where(codes[last] & 16, np.int64(1) << (5 * lengths), 0)
    # From the fourth run on, the text holds the difference to the run before the last.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])

    pixels = size[0] * size[1]
    if runs.min() < 0:
        raise ValueError(f"run {int(np.argmax(runs < 0))} of counts is negative")
    if runs.max() > pixels or (covered := int(runs.sum())) > pixels:
        raise ValueError(f"the runs of counts exceed the {size[0]}×{size[1]} pixels of size")
    if covered < pixels:
        raise ValueError(
            f"the runs of counts cover {covered} of the {size[0]}×{size[1]} pixels of size"
        )
    return runs


def foreground_spans(runs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The spans of a mask's pixels in column-major order.

    Args:
        runs: (R,) run lengths, background first.

    Returns:
        starts and ends, each int64 and of one length: span i covers starts[i] ≤ p < ends[i], where
        pixel (y, x) is p = x·H + y. Spans of no pixel are left out.
    """
    bounds = np.cumsum(runs)
    ends = bounds[1::2]
    starts = bounds[0::2][: ends.size]
    filled = ends > starts
    return starts[filled], ends[filled]


def tight_box(
    starts: NDArray[np.int64], ends: NDArray[np.int64], height: int
) -> tuple[int, int, int, int]:
    """The smallest box around a mask of at least one pixel.

    Args:
        starts: first pixel of each span, column-major, as from `foreground_spans`.
        ends: one past the last pixel of each span.
        height: H of the mask.

    Returns:
        (x0, y0, x1, y1) in pixels; x1 and y1 are exclusive.
    """
    left, right = int(starts[0]) // height, (int(ends[-1]) - 1) // height
    if (starts // height != (ends - 1) // height).any():
        # A span that goes on into the next column holds a bottom pixel and a top pixel.
        return left, 0, right + 1, height
    return left, int((starts % height).min()), right + 1, int(((ends - 1) % height).max()) + 1


def decode_crop(
    counts: str | bytes, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decodes a mask within its tight box only: nothing larger than that box is held.

    Args:
        counts: the text of a COCO RLE.
        size: (H, W) of the whole mask.

    Returns:
        the mask, (h, w) uint8 of 0 and 1, and the (x, y) of its upper left pixel; for a mask
        without a pixel, an array of shape (0, 0) at (0, 0).

    Raises:
        ValueError: as `decode_counts`.
    """
    height = size[0]
    starts, ends = foreground_spans(decode_counts(counts, size))
    if starts.size == 0:
        return np.zeros((0, 0), np.uint8), (0, 0)
    x0, y0, x1, y1 = tight_box(starts, ends, height)
    # Positions within the box. A span lies in one column, or else the box is as high as the image.
    columns, rows = np.divmod(starts, height)
    starts_inside = (columns - x0) * (y1 - y0) + rows - y0
    # 1 where a span starts and −1 where it ends sums up to the mask. Spans that touch, in the text
    # by runs of length zero or in the box from column to column, start and end at one place: hence
    # add.at and not assignment.
    steps = np.zeros((x1 - x0) * (y1 - y0) + 1, np.int8)
    np.add.at(steps, starts_inside, 1)
    np.add.at(steps, starts_inside + (ends - starts), -1)
    crop = np.cumsum(steps[:-1], dtype=np.int8).reshape(x1 - x0, y1 - y0)
    return np.ascontiguousarray(crop.T).view(np.uint8), (x0, y0)
