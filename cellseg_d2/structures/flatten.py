"""Instances that overlap, made one label map: what label TIFFs, PQ and AJI are all measured on.

A pixel goes to the instance of the highest score, of equal scores to the earlier one. Instances
that keep no pixel are dropped and counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .run_decoding import decode_runs
from .run_sets import select_runs, split_columns
from .runs import PixelRuns

# Pixels painted at a time: some megabytes of indices.
_PIXELS_PER_CHUNK = 2**18


@dataclass(frozen=True)
class FlatLabels:
    """A label map, and which of the N instances given are in it.

    Ids are contiguous and in the order in which the instances were given, so that they follow the
    scores where the best came first.

    Attributes:
        label_map: (H, W) int32; 0 is background, 1 … n the instances that kept a pixel.
        kept: (n,) int64; id i is the instance ``kept[i - 1]`` of those given, counted from 0.
        ids: (N,) int32, the id of each instance given; 0 for one that was dropped.
    """

    label_map: np.ndarray
    kept: np.ndarray
    ids: np.ndarray

    @property
    def dropped(self) -> int:
        """How many instances kept no pixel: covered by others, or empty from the beginning."""
        return len(self.ids) - len(self.kept)


def flatten_masks(
    rles: Sequence[dict], scores: Sequence[float] | np.ndarray, image_size: tuple[int, int]
) -> FlatLabels:
    """Flatten the instances of one image.

    The cost follows the instances' pixels, and no bitmap of one is made: for 1,000 cells 20 times
    as fast as decoding and painting each (``tools/benchmark.py evaluation``).

    Args:
        rles: N dicts ``{"size": [H, W], "counts": bytes or str}``.
        scores: (N,) finite; the higher one wins a pixel, of equal ones the earlier one.
        image_size: height and width in pixels.

    Returns:
        The label map, whose ids 1 … n are in the order of ``rles``.

    Raises:
        ValueError: for lengths that differ, a score that is not finite, or an RLE of another size.
    """
    painter = LabelMapPainter(*image_size)
    painter.add(rles, scores)
    return painter.finish()


class LabelMapPainter:
    """Flattens instances that come in parts, as those of a slide do, into a map given to it.

    The order of the parts does not matter but for equal scores, and for the numbering.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        out: (H, W) int32, C-contiguous, zeros, such as a memory map; a new array if None.

    Raises:
        ValueError: for an ``out`` of another shape, dtype or order.
    """

    def __init__(self, height: int, width: int, out: np.ndarray | None = None) -> None:
        self.image_size = (int(height), int(width))
        if out is None:
            out = np.zeros(self.image_size, dtype=np.int32)
        if out.shape != self.image_size or out.dtype != np.int32 or not out.flags.c_contiguous:
            raise ValueError(
                f"out has to be a C-contiguous int32 array of {self.image_size}, "
                f"not {out.dtype} {out.shape}"
            )
        self.label_map = out
        # By provisional id, that is order of adding from 1; 0 is background.
        self._scores = np.full(1, -np.inf)
        self._visible = np.zeros(1, dtype=np.int64)

    def add(self, rles: Sequence[dict], scores: Sequence[float] | np.ndarray) -> np.ndarray:
        """Paint some instances.

        Args:
            rles: of M instances, in the coordinates of the whole image.
            scores: (M,) finite.

        Returns:
            (M,) int32, provisional ids: 1, 2, … in the order of adding. ``finish`` says which
            ids they become (``ids[provisional - 1]``).

        Raises:
            ValueError: for lengths that differ, a score that is not finite, or an RLE of another
                size.
        """
        scores = np.asarray(scores, dtype=np.float64)
        if scores.shape != (len(rles),):
            raise ValueError(f"{len(rles)} masks need as many scores, not {scores.shape}")
        if not np.isfinite(scores).all():
            raise ValueError("scores have to be finite")
        runs = decode_runs(rles, self.image_size)
        first = len(self._scores)
        self._scores = np.concatenate([self._scores, scores])
        self._visible = np.concatenate([self._visible, np.zeros(len(rles), np.int64)])
        # The best last: of pixels assigned more than once, NumPy keeps the last value.
        order = np.lexsort((-np.arange(len(scores)), scores))
        for pixels, instances in _pixels_in_chunks(runs, order):
            self._paint(pixels, (first + instances).astype(np.int32))
        return np.arange(first, len(self._scores), dtype=np.int32)

    def finish(self) -> FlatLabels:
        """Close the gaps that covered instances left in the ids.

        Nothing can be added afterwards.

        Returns:
            The flattened instances; ``label_map`` is the map painted on.
        """
        visible = self._visible[1:] > 0
        ids = np.where(visible, np.cumsum(visible), 0).astype(np.int32)
        if not visible.all():
            table = np.concatenate([np.zeros(1, np.int32), ids])
            rows = max(1, _PIXELS_PER_CHUNK // max(1, self.image_size[1]))
            for top in range(0, self.image_size[0], rows):
                self.label_map[top : top + rows] = table[self.label_map[top : top + rows]]
        return FlatLabels(self.label_map, np.flatnonzero(visible), ids)

    def _paint(self, pixels: np.ndarray, ids: np.ndarray) -> None:
        """Give pixels, flat indices with the best instance's last, to ids of higher scores."""
        flat = self.label_map.reshape(-1)
        before = np.asarray(flat[pixels])
        own, other = self._scores[ids], self._scores[before]
        better = (own > other) | ((own == other) & (ids < before))
        pixels, ids, before = pixels[better], ids[better], before[better]
        flat[pixels] = ids
        # Of several that wanted a pixel one has it; an instance wants each pixel once.
        won = flat[pixels] == ids
        count = len(self._visible)
        self._visible += np.bincount(ids[won], minlength=count)
        self._visible -= np.bincount(before[won], minlength=count)


def _pixels_in_chunks(
    runs: PixelRuns, order: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """List the pixels of instances, instance by instance.

    Args:
        runs: column-major, of the instances.
        order: (N,) in which to go through them.

    Yields:
        (P,) int64, indices into the flattened (H, W) map, and the instance of each.
    """
    width = runs.image_size[1]
    runs = select_runs(runs, order)
    instances = np.repeat(order, np.diff(runs.offsets))
    # Cut where columns end, so that a run's pixels lie one row apart from each other.
    run, x, y0, y1 = split_columns(runs)
    top, lengths, instances = y0 * width + x, y1 - y0, instances[run]
    total = np.cumsum(lengths)
    begin = 0
    while begin < len(lengths):
        done = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, done + _PIXELS_PER_CHUNK, side="right")))
        part = lengths[begin:end]
        along = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
        yield np.repeat(top[begin:end], part) + along * width, np.repeat(instances[begin:end], part)
        begin = end
