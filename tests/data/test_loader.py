"""The stream of batches: coverage, order, resuming, and independence of workers and ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cellseg_d2.data.loader import StreamSampler, build_stream_loader


def first(sampler: StreamSampler, batches: int) -> list[list[tuple[int, int]]]:
    return list(itertools.islice(sampler, batches))


def test_each_epoch_covers_each_image_once_in_another_order() -> None:
    sampler = StreamSampler(10, 5, seed=3)
    stream = [item for batch in first(sampler, 6) for item in batch]
    assert [position for _, position in stream] == list(range(30))
    epochs = [[index for index, _ in stream[k : k + 10]] for k in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_seed_decides_the_order() -> None:
    assert first(StreamSampler(50, 5, seed=1), 10) == first(StreamSampler(50, 5, seed=1), 10)
    assert first(StreamSampler(50, 5, seed=1), 10) != first(StreamSampler(50, 5, seed=2), 10)


@pytest.mark.parametrize("start", [1, 3, 7])
def test_resuming_by_position_continues_the_stream(start: int) -> None:
    whole = first(StreamSampler(7, 4, seed=5), 12)
    assert first(StreamSampler(7, 4, seed=5, start=start), 12 - start) == whole[start:]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_each_batch_between_them(world_size: int) -> None:
    whole = first(StreamSampler(9, 4, seed=5), 8)
    ranks = [
        first(StreamSampler(9, 4, seed=5, rank=r, world_size=world_size), 8)
        for r in range(world_size)
    ]
    for i, batch in enumerate(whole):
        assert sorted(item for rank in ranks for item in rank[i]) == sorted(batch)


def test_a_batch_may_be_larger_than_the_data_set() -> None:
    (batch,) = first(StreamSampler(2, 5, seed=0), 1)
    assert [position for _, position in batch] == [0, 1, 2, 3, 4]
    assert {index for index, _ in batch} == {0, 1}


@pytest.mark.parametrize(
    ("size", "batch", "world", "message"),
    [(0, 2, 1, "no images"), (4, 3, 2, "multiple"), (4, 0, 1, "positive")],
)
def test_refusals(size: int, batch: int, world: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamSampler(size, batch, seed=0, world_size=world)


def draw(record: dict, position: int) -> tuple[int, int, bytes, list[str]]:
    """A stand-in for a mapper: random bytes from (seed, position), and the keys it was given."""
    noise = np.random.default_rng([11, position]).bytes(8)
    return record["image_id"], position, noise, sorted(record)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(workers: int) -> None:
    dicts = [{"image_id": i, "annotations": [object()]} for i in range(5)]

    def batches(num_workers: int) -> list:
        loader = build_stream_loader(dicts, draw, StreamSampler(5, 2, seed=1), num_workers)
        return list(itertools.islice(loader, 8))

    alone = batches(0)
    assert batches(workers) == alone
    samples = [sample for batch in alone for sample in batch]
    assert len({noise for _, _, noise, _ in samples}) == len(samples), "two samples drew the same"


def test_workers_are_not_sent_annotations() -> None:
    dicts = [{"image_id": 0, "annotations": [1, 2, 3]}]
    loader = build_stream_loader(dicts, draw, StreamSampler(1, 1, seed=1), 0)
    assert next(iter(loader))[0][3] == ["image_id"]
    assert dicts[0]["annotations"] == [1, 2, 3]
