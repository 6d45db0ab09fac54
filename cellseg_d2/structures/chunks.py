"""Batches of windows that differ in size."""

from collections.abc import Iterator

import torch


def chunks_of_similar_size(sizes: torch.Tensor, pixels_per_chunk: int) -> Iterator[torch.Tensor]:
    """Group windows so that padding all of a group to its largest wastes little.

    Windows without area are left out. A window above the limit makes a group of its own.

    Args:
        sizes: (N, 2) extents in pixels.
        pixels_per_chunk: the most pixels of a group after padding.

    Yields:
        (n,) int64, indices into ``sizes``, on its device.
    """
    side = sizes.amax(dim=1)
    side[sizes.amin(dim=1) <= 0] = 0
    order = torch.argsort(side, stable=True)
    ascending = side[order].tolist()
    begin = sum(extent <= 0 for extent in ascending)
    for end in range(begin + 1, len(ascending) + 1):
        is_last = end == len(ascending)
        if is_last or (end + 1 - begin) * ascending[end] ** 2 > pixels_per_chunk:
            yield order[begin:end]
            begin = end
