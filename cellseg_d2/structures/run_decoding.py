"""From COCO's RLE strings back to runs of pixels, all instances of an image together."""

from collections.abc import Sequence

import numpy as np

from .runs import PixelRuns

_MOST_CHARACTERS = 12  # of one number: 60 bits with the sign, more than any image has pixels


def decode_runs(rles: Sequence[dict], image_size: tuple[int, int]) -> PixelRuns:
    """Read the runs of every instance, without a bitmap: the inverse of ``PixelRuns.rles``.

    The cost follows the length of the text, and not the size of the image.

    Args:
        rles: N dicts ``{"size": [H, W], "counts": bytes or str}``, COCO's compressed RLE; runs
            without a pixel, which other programs may write, are allowed.
        image_size: height and width in pixels, that of each RLE.

    Returns:
        The runs of the N instances; an instance without a pixel has none.

    Raises:
        TypeError: for uncompressed counts, a list of numbers.
        ValueError: for an RLE of another size, or text that is not a mask of that size.
    """
    height, width = int(image_size[0]), int(image_size[1])
    texts = [_text(rle, (height, width), index) for index, rle in enumerate(rles)]
    values, first = _numbers(texts)
    counts = _undo_differences(values, first)
    _check_counts(counts, first, height * width)

    bounds = _cumsum_within(counts, first)
    position = np.arange(len(counts)) - np.repeat(first[:-1], np.diff(first))
    end_index = np.flatnonzero(position % 2)  # counts in turn: background, instance, background, …
    instances = np.repeat(np.arange(len(texts)), np.diff(first) // 2)
    starts, ends = bounds[end_index - 1], bounds[end_index]
    filled = ends > starts
    starts, ends, instances = starts[filled], ends[filled], instances[filled]
    return PixelRuns.from_spans(starts, ends, instances, len(texts), (height, width))


def _text(rle: dict, image_size: tuple[int, int], index: int) -> bytes:
    if tuple(rle["size"]) != image_size:
        raise ValueError(f"RLE {index} is of size {rle['size']} in an image of {image_size}")
    counts = rle["counts"]
    if isinstance(counts, str):
        counts = counts.encode("ascii", errors="replace")  # "?" gives a sum that is not H * W
    if not isinstance(counts, bytes):
        raise TypeError(f"RLE {index} has counts of type {type(counts).__name__}, not bytes or str")
    return counts


def _numbers(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Read the numbers of all texts, five bits a character, lowest first.

    Returns:
        (C,) int64, and (N + 1,) where each text's numbers begin.
    """
    codes = np.frombuffer(b"".join(texts), dtype=np.uint8) - np.uint8(48)  # wraps below "0"
    last = codes < 32  # bit 5 says that the number goes on
    text_end = np.cumsum([0, *map(len, texts)])
    written = np.flatnonzero(np.diff(text_end))
    if np.any(codes > 63) or not last[text_end[written + 1] - 1].all():
        raise ValueError("counts of an RLE hold a character outside COCO's, or end within a number")
    ends = np.flatnonzero(last) + 1
    begins = np.concatenate([np.zeros(min(1, len(ends)), ends.dtype), ends[:-1]])
    lengths = ends - begins
    if lengths.max(initial=0) > _MOST_CHARACTERS:
        raise ValueError("counts of an RLE hold a number too large for any image")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(begins, lengths))
    bits = (codes & 31).astype(np.int64) << shifts
    values = np.add.reduceat(bits, begins) if len(begins) else np.zeros(0, np.int64)
    values -= np.where(codes[ends - 1] & 16, np.int64(1) << (5 * lengths), 0)
    return values, np.searchsorted(ends, text_end, side="right")


def _undo_differences(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """From an instance's fourth count on, the text holds the difference to the count before last.

    Returns:
        (C,) int64, the counts themselves.
    """
    counts = values.copy()
    position = np.arange(len(values)) - np.repeat(first[:-1], np.diff(first))
    for chain in (position % 2 == 1, (position % 2 == 0) & (position > 0)):
        members = np.flatnonzero(chain)
        counts[members] = _cumsum_within(values[members], np.searchsorted(members, first))
    return counts


def _cumsum_within(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Cumulative sums that start anew at each instance."""
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    return total[1:] - np.repeat(total[first[:-1]], np.diff(first))


def _check_counts(counts: np.ndarray, first: np.ndarray, num_pixels: int) -> None:
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    sums = total[first[1:]] - total[first[:-1]]
    wrong = np.flatnonzero(sums != num_pixels)
    if len(wrong) or counts.min(initial=0) < 0 or counts.max(initial=0) > num_pixels:
        negative = np.searchsorted(first, counts.argmin(), side="right") - 1
        index = int(wrong[0]) if len(wrong) else int(negative)
        raise ValueError(f"the counts of RLE {index} do not cover the {num_pixels} pixels of size")
