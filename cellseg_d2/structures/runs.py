"""Runs of pixels in column-major order, and their compression to COCO's RLE strings.

Both ways into RLE end here: ground truth arrives as the runs of a label map
(:mod:`.label_map_runs`), predictions as the runs of pasted RoI masks (:mod:`.rle`). All instances
are compressed together, so that the cost follows the number of runs and not of instances.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_BITS_PER_CHARACTER = 5  # of COCO's string format, see rleToString in pycocotools' maskApi.c


@dataclass(frozen=True)
class PixelRuns:
    """The pixels of N instances of one image as runs in column-major order.

    The runs of an instance are disjoint, do not touch, and are sorted by position; pixel (y, x) of
    an image of height H has the position ``x * H + y``, so that a run may go on in the next column.

    Attributes:
        starts: (R,) int64, each run's first position.
        ends: (R,) int64, one past each run's last position.
        offsets: (N + 1,) int64; instance i has the runs ``offsets[i]:offsets[i + 1]``.
        image_size: height and width in pixels.
    """

    starts: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray
    image_size: tuple[int, int]

    @classmethod
    def from_spans(
        cls,
        starts: np.ndarray,
        ends: np.ndarray,
        instances: np.ndarray,
        num_instances: int,
        image_size: tuple[int, int],
    ) -> "PixelRuns":
        """Join spans that touch, such as the end of a column and the beginning of the next.

        Args:
            starts: (S,) int64, first positions, sorted by instance and then by position.
            ends: (S,) int64, one past the last position, at most the next span's start.
            instances: (S,) int64, which instance each span belongs to.
            num_instances: N; an instance without a span has no pixel.
            image_size: height and width in pixels.
        """
        goes_on = np.zeros(len(starts), dtype=bool)
        goes_on[1:] = (starts[1:] == ends[:-1]) & (instances[1:] == instances[:-1])
        offsets = np.searchsorted(instances[~goes_on], np.arange(num_instances + 1))
        return cls(starts[~goes_on], ends[~np.roll(goes_on, -1)], offsets, image_size)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def rles(self) -> list[dict]:
        """Compress every instance.

        Returns:
            N dicts ``{"size": [H, W], "counts": bytes}``, the bytes those of
            ``pycocotools.mask.encode`` on the instance's bitmap.
        """
        height, width = self.image_size
        counts, first_count = self._counts()
        text, first_character = _compress(counts, first_count)
        return [
            {"size": [height, width], "counts": text[begin:end]}
            for begin, end in pairwise(first_character.tolist())
        ]

    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of the alternating runs of background and instance, background first.

        Returns:
            The counts of all instances one after the other, and (N + 1,) where each one's begin.
        """
        first, last = self.offsets[:-1], self.offsets[1:] - 1
        runs_per_instance = np.diff(self.offsets)
        occupied = runs_per_instance > 0
        num_pixels = self.image_size[0] * self.image_size[1]

        gaps = self.starts.copy()
        gaps[1:] -= self.ends[:-1]
        gaps[first[occupied]] = self.starts[first[occupied]]
        tails = np.full(len(self), num_pixels, dtype=np.int64)
        tails[occupied] -= self.ends[last[occupied]]

        # Two counts a run, and one for the background behind the last run where there is some.
        has_tail = ~occupied | (tails > 0)
        first_count = np.zeros(len(self) + 1, dtype=np.int64)
        np.cumsum(2 * runs_per_instance + has_tail, out=first_count[1:])
        counts = np.empty(first_count[-1], dtype=np.int64)
        gap_index = 2 * np.arange(len(self.starts)) + np.repeat(
            first_count[:-1] - 2 * first, runs_per_instance
        )
        counts[gap_index] = gaps
        counts[gap_index + 1] = self.ends - self.starts
        counts[first_count[1:][has_tail] - 1] = tails[has_tail]
        return counts, first_count


def _compress(counts: np.ndarray, first_count: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Write counts in COCO's string format.

    From an instance's fourth count on, the difference to the count before last is written; a value
    takes as many groups of 5 bits as its two's complement needs, lowest first, each a character
    from ``0`` on, with bit 5 set where more follow.

    Args:
        counts: (C,) int64, the counts of all instances one after the other.
        first_count: (N + 1,) where each instance's counts begin.

    Returns:
        The characters of all instances, and (N + 1,) where each one's begin.
    """
    values = counts.copy()
    values[2:] -= counts[:-2]
    head = (first_count[:-1, None] + np.arange(3)).ravel()
    head = head[head < np.repeat(first_count[1:], 3)]
    values[head] = counts[head]

    magnitude = np.where(values < 0, ~values, values)
    num_characters = np.ones(len(values), dtype=np.int64)
    limit = 1 << (_BITS_PER_CHARACTER - 1)
    longest = int(magnitude.max(initial=0))
    while limit <= longest:
        num_characters += magnitude >= limit
        limit <<= _BITS_PER_CHARACTER

    value_end = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(num_characters, out=value_end[1:])
    text = np.empty(value_end[-1], dtype=np.uint8)
    position = value_end[:-1]
    while len(values):
        more = num_characters > 1
        text[position] = (values & 31) + 48 + (more << _BITS_PER_CHARACTER)
        values = values[more] >> _BITS_PER_CHARACTER
        position = position[more] + 1
        num_characters = num_characters[more] - 1
    return text.tobytes(), value_end[first_count]
