"""The stream of training batches: which image stands at which position, on any number of workers.

The stream is an endless sequence of positions 0, 1, 2, …, cut into epochs. The images of epoch e
and their order are drawn from (seed, e): each image once, or as often as its repeat factor says. A
sample's random numbers depend on (seed, position) alone. So the number of workers and of ranks
changes nothing, and a run resumes by position.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import CellDataError, ConfigError

Position = tuple[int, int]
"""(index into the data set, position in the stream)."""


class StreamSampler(Sampler[list[Position]]):
    """Batches of (index, position) for one rank, without end.

    Global batch i holds positions i·B to (i+1)·B - 1; a rank takes every ``world_size``-th of them.
    Epoch e covers positions e·N to (e+1)·N - 1.

    Args:
        size: number of images, at least 1.
        batch_size: images per batch over all ranks, a multiple of ``world_size``.
        seed: of the order of the images.
        start: number of batches to pass over, for resuming.
        rank: of this process, 0 to ``world_size`` - 1.
        world_size: number of processes.

    Raises:
        ConfigError: for an empty data set or a batch that does not divide among the ranks.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if size < 1:
            raise ConfigError("the data set holds no images")
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH is {batch_size}; it must be a positive multiple of the "
                f"number of processes, {world_size}"
            )
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world_size = world_size
        # An epoch's order is asked for once for each of its positions.
        self._order_of_epoch = functools.lru_cache(maxsize=2)(self.epoch_order)

    @property
    def epoch_size(self) -> int:
        """How many samples an epoch holds on average, to the nearest whole one."""
        return self.size

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Return the images of ``epoch`` in their order, (size,) int64."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.size)

    def locate(self, position: int) -> tuple[int, int]:
        """Return the epoch that ``position`` lies in, and its place there, both from 0."""
        return divmod(position, self.size)

    def index_at(self, position: int) -> int:
        """Return the index of the image at ``position`` of the stream."""
        epoch, place = self.locate(position)
        return int(self._order_of_epoch(epoch)[place])

    def __iter__(self) -> Iterator[list[Position]]:
        batch = self.start
        while True:
            first = batch * self.batch_size + self.rank
            positions = range(first, (batch + 1) * self.batch_size, self.world_size)
            yield [(self.index_at(p), p) for p in positions]
            batch += 1


class RepeatFactorSampler(StreamSampler):
    """A ``StreamSampler`` whose epochs hold an image as often as its repeat factor says.

    A factor of 2.3 makes three copies in 30 % of the epochs and two in the others, drawn from
    (seed, epoch), as Detectron2's ``RepeatFactorTrainingSampler`` rounds. Epochs so differ in
    length, and where one starts is the sum of the lengths before it: those are computed when first
    asked for, 15 µs an epoch of 209 images, whatever position the stream starts from.

    Args:
        repeat_factors: (N,) how often each image comes up in an epoch on average, at least 1.
        batch_size, seed, start, rank, world_size: see ``StreamSampler``.

    Raises:
        ValueError: for a factor below 1, or what ``StreamSampler`` refuses.
    """

    def __init__(
        self,
        repeat_factors: np.ndarray,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(len(repeat_factors), batch_size, seed, start, rank, world_size)
        if not np.all(repeat_factors >= 1):
            raise ValueError("a repeat factor is at least 1: no image is left out")
        self.repeat_factors = repeat_factors
        # First position of each epoch whose predecessors' lengths are known.
        self._first_positions = [0]

    @property
    def epoch_size(self) -> int:
        return round(float(self.repeat_factors.sum()))

    def repeats(self, epoch: int) -> np.ndarray:
        """Return how often each image comes up in ``epoch``, (N,) int64, at least 1."""
        whole = np.floor(self.repeat_factors)
        # The third word keeps these numbers apart from those of the order.
        drawn = np.random.default_rng([self.seed, epoch, 1]).random(self.size)
        return (whole + (drawn < self.repeat_factors - whole)).astype(np.int64)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Return the images of ``epoch`` with their repeats, in their order, int64."""
        images = np.repeat(np.arange(self.size), self.repeats(epoch))
        return images[np.random.default_rng([self.seed, epoch]).permutation(len(images))]

    def locate(self, position: int) -> tuple[int, int]:
        firsts = self._first_positions
        while firsts[-1] <= position:
            firsts.append(firsts[-1] + int(self.repeats(len(firsts) - 1).sum()))
        epoch = bisect.bisect_right(firsts, position) - 1
        return epoch, position - firsts[epoch]


class KeepFaults:
    """A mapper that hands back a ``CellDataError`` instead of raising it.

    PyTorch makes an error that a worker raises again out of its text alone, as a ``RuntimeError``
    with a traceback. As a sample it arrives whole, and ``FaultRaisingLoader`` raises it.

    Args:
        mapper: called with whatever comes.
    """

    def __init__(self, mapper: Callable[..., Any]) -> None:
        self.mapper = mapper

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self.mapper(*arguments)
        except CellDataError as fault:
            return fault


class FaultRaisingLoader:
    """A loader of batches (lists of samples) that raises what ``KeepFaults`` kept.

    Args:
        loader: what is iterated over.
    """

    def __init__(self, loader: DataLoader[list[Any]]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self.loader:
            for sample in batch:
                if isinstance(sample, CellDataError):
                    raise sample
            yield batch


class MappedStream(Dataset[Any]):
    """Maps (index, position) to ``mapper(dicts[index], position)``."""

    def __init__(
        self, dicts: Sequence[dict[str, Any]], mapper: Callable[[dict[str, Any], int], Any]
    ) -> None:
        self.dicts = dicts
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, item: Position) -> Any:
        index, position = item
        return self.mapper(self.dicts[index], position)


def build_stream_loader(
    dicts: Sequence[dict[str, Any]],
    mapper: Callable[[dict[str, Any], int], Any],
    sampler: StreamSampler,
    num_workers: int,
    pin_memory: bool = False,
) -> FaultRaisingLoader:
    """Return the endless loader of training batches, each a list of mapped samples.

    Annotations are left out of what the workers hold: the mapper reads the label maps, and
    unpickling 2,000 RLEs a sample would cost more than decoding the image.

    Args:
        dicts: Detectron2 dicts.
        mapper: called with a dict and a position in the stream.
        sampler: yields the batches' (index, position).
        num_workers: processes that map samples; 0 maps them in this one.
        pin_memory: see ``torch.utils.data.DataLoader``.
    """
    light = [{k: v for k, v in d.items() if k != "annotations"} for d in dicts]
    loader: DataLoader[list[Any]] = DataLoader(
        MappedStream(light, KeepFaults(mapper)),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=list,
        pin_memory=pin_memory,
        worker_init_fn=_single_threaded,
        # A generator of its own, so that starting the loader does not move the model's numbers.
        generator=torch.Generator(),
    )
    return FaultRaisingLoader(loader)


def _single_threaded(worker: int) -> None:
    # The workers are the parallelism; OpenCV would start a thread per core in each.
    cv2.setNumThreads(0)
