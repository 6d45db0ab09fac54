"""Masks as sets of pixels: moved, intersected and united as runs, all instances at once.

The cost follows the number of runs. A cell of 30 columns costs the same in an image of 100 rows and
in one of 20,000, where its bitmap would be out of the question.
"""

from collections.abc import Sequence

import numpy as np

from .runs import PixelRuns


def select_runs(runs: PixelRuns, indices: np.ndarray) -> PixelRuns:
    """Return some of the instances, in the order asked for.

    Args:
        runs: N instances.
        indices: (K,) int64 in [0, N), which may repeat; or (N,) bool.
    """
    if indices.dtype == bool:
        indices = np.flatnonzero(indices)
    members = _members(runs.offsets[indices], runs.offsets[indices + 1])
    counts = runs.offsets[indices + 1] - runs.offsets[indices]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
    return PixelRuns(runs.starts[members], runs.ends[members], offsets, runs.image_size)


def concatenate_runs(parts: Sequence[PixelRuns]) -> PixelRuns:
    """Return the instances of several sets, one set after the other.

    Args:
        parts: at least one set, all of one image size.

    Raises:
        ValueError: for no set, or image sizes that differ.
    """
    if len({part.image_size for part in parts}) != 1:
        raise ValueError("runs of one image size are concatenated, at least one set of them")
    before = np.cumsum([0, *(len(part.starts) for part in parts)])
    offsets = [part.offsets[:-1] + first for part, first in zip(parts, before, strict=False)]
    return PixelRuns(
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.ends for part in parts]),
        np.concatenate([*offsets, before[-1:]]).astype(np.int64),
        parts[0].image_size,
    )


def move_runs(runs: PixelRuns, top: int, left: int, image_size: tuple[int, int]) -> PixelRuns:
    """Put the masks of a window where the window lies in a larger image.

    Args:
        runs: of a window of height h and width w, ``runs.image_size``.
        top: the window's first row in the image.
        left: the window's first column in the image.
        image_size: height and width of the image.

    Returns:
        The same pixels in the coordinates of the image.

    Raises:
        ValueError: where the window does not lie inside the image.
    """
    height, width = runs.image_size
    inside = 0 <= top <= image_size[0] - height and 0 <= left <= image_size[1] - width
    if not inside:
        raise ValueError(
            f"a window of {runs.image_size} at {(top, left)} in an image of {image_size}"
        )
    run, x, y0, y1 = split_columns(runs)
    column = (x + left) * image_size[0] + top
    instances = _instances(runs)[run]
    return PixelRuns.from_spans(column + y0, column + y1, instances, len(runs), image_size)


def split_columns(
    runs: PixelRuns,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut runs where a column ends.

    Returns:
        Four int64 arrays (S,), in the order of the runs: which run a span comes from, its column x,
        and its rows y0 … y1 - 1.
    """
    height = runs.image_size[0]
    first, last = runs.starts // height, (runs.ends - 1) // height
    run = np.repeat(np.arange(len(runs.starts)), last - first + 1)
    x = _members(first, last + 1)
    y0 = np.maximum(runs.starts[run] - x * height, 0)
    y1 = np.minimum(runs.ends[run] - x * height, height)
    return run, x, y0, y1


def areas(runs: PixelRuns) -> np.ndarray:
    """Return the pixels of each instance, (N,) int64."""
    return _sums(runs.ends - runs.starts, runs.offsets)


def tight_boxes(runs: PixelRuns) -> np.ndarray:
    """Return the smallest boxes, (N, 4) int64 XYXY, x1 and y1 exclusive; zeros without a pixel."""
    run, x, y0, y1 = split_columns(runs)
    boxes = np.zeros((len(runs), 4), np.int64)
    occupied = np.flatnonzero(np.diff(runs.offsets))
    if len(occupied):
        first = np.searchsorted(run, runs.offsets[occupied])
        boxes[occupied, 0] = np.minimum.reduceat(x, first)
        boxes[occupied, 1] = np.minimum.reduceat(y0, first)
        boxes[occupied, 2] = np.maximum.reduceat(x, first) + 1
        boxes[occupied, 3] = np.maximum.reduceat(y1, first)
    return boxes


def areas_within(runs: PixelRuns, windows: np.ndarray) -> np.ndarray:
    """Count the pixels of each instance inside a window of its own.

    Args:
        runs: N instances.
        windows: (N, 4) int64 XYXY, x1 and y1 exclusive.

    Returns:
        (N,) int64.
    """
    run, x, y0, y1 = split_columns(runs)
    x0, top, x1, bottom = windows[_instances(runs)[run]].T
    rows = np.minimum(y1, bottom) - np.maximum(y0, top)
    pixels = np.where((x >= x0) & (x < x1), np.maximum(rows, 0), 0)
    return _sums(pixels, np.searchsorted(run, runs.offsets))


def intersection_areas(
    runs: PixelRuns,
    first: np.ndarray,
    second: np.ndarray,
    shifts: np.ndarray | None = None,
) -> np.ndarray:
    """Count the pixels that pairs of instances share.

    All pairs take one search in the sorted runs, so that thousands cost some milliseconds.

    Args:
        runs: N instances.
        first: (P,) int64 in [0, N).
        second: (P,) int64 in [0, N).
        shifts: (P,) int64, positions by which the first of each pair is moved before; H moves it by
            a column, 1 by a row. It has to stay inside the image.

    Returns:
        (P,) int64.
    """
    moved = select_runs(runs, first)
    pair = _instances(moved)
    shift = 0 if shifts is None else shifts[pair]
    # Instances in a line of positions of their own, which makes the runs of all one sorted list.
    stride = runs.image_size[0] * runs.image_size[1] + 1
    lines = _instances(runs) * stride
    starts, ends = runs.starts + lines, runs.ends + lines
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(runs.ends - runs.starts)])

    def pixels_before(position: np.ndarray) -> np.ndarray:
        """Pixels of all instances in line that come before a position."""
        next_run = np.searchsorted(starts, position)
        beyond = np.zeros(len(position), np.int64)
        if len(ends):
            beyond = np.maximum(ends[next_run - 1] - position, 0) * (next_run > 0)
        return before[next_run] - beyond

    line = second[pair] * stride + shift
    shared = pixels_before(line + moved.ends) - pixels_before(line + moved.starts)
    return _sums(shared, moved.offsets)


def unite_runs(runs: PixelRuns, groups: np.ndarray, num_groups: int) -> PixelRuns:
    """Unite instances.

    Args:
        runs: N instances.
        groups: (N,) int64 in [0, ``num_groups``), which mask each instance becomes part of.
        num_groups: G; a group without an instance has no pixel.

    Returns:
        G masks, each all pixels of its instances.
    """
    stride = runs.image_size[0] * runs.image_size[1] + 1
    lines = groups[_instances(runs)] * stride
    starts, ends = runs.starts + lines, runs.ends + lines
    order = np.argsort(starts, kind="stable")
    starts, reached = starts[order], np.maximum.accumulate(ends[order])
    # A run begins where all before it have ended; what touches is joined.
    begins = np.ones(len(starts), dtype=bool)
    begins[1:] = starts[1:] > reached[:-1]
    starts, ends = starts[begins], reached[np.roll(begins, -1)]
    line = starts // stride
    offsets = np.searchsorted(line, np.arange(num_groups + 1))
    return PixelRuns(starts - line * stride, ends - line * stride, offsets, runs.image_size)


def _instances(runs: PixelRuns) -> np.ndarray:
    """Which instance each run belongs to, (R,) int64."""
    return np.repeat(np.arange(len(runs)), np.diff(runs.offsets))


def _members(first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """All numbers of the ranges [first, end), one range after the other."""
    lengths = end - first
    total = np.cumsum(lengths)
    return np.arange(total[-1] if len(total) else 0) + np.repeat(first - (total - lengths), lengths)


def _sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sums of ``values[offsets[i]:offsets[i + 1]]``, (N,) int64."""
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
    return total[offsets[1:]] - total[offsets[:-1]]
