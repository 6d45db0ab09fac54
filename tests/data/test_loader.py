"""The stream of batches: coverage, order, resuming, and independence of workers and ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cellseg_d2.data.loader import RepeatFactorSampler, StreamSampler, build_stream_loader


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


FACTORS = np.array([1.0, 2.3, 1.0, 3.0, 1.5])


def images(sampler: StreamSampler, positions: range) -> list[int]:
    return [sampler.index_at(position) for position in positions]


def test_repeats_average_to_the_factors() -> None:
    sampler = RepeatFactorSampler(FACTORS, 2, seed=4)
    repeats = np.stack([sampler.repeats(epoch) for epoch in range(4000)])
    assert repeats.min(axis=0).tolist() == [1, 2, 1, 3, 1]
    assert repeats.max(axis=0).tolist() == [1, 3, 1, 3, 2]
    # Five standard errors of the mean of a coin thrown 4,000 times.
    np.testing.assert_allclose(repeats.mean(axis=0), FACTORS, atol=0.04)
    assert np.corrcoef(repeats[:, 1], repeats[:, 4])[0, 1] == pytest.approx(0, abs=0.08)


def test_each_epoch_holds_each_image_as_often_as_it_repeats() -> None:
    sampler = RepeatFactorSampler(FACTORS, 2, seed=4)
    lengths = [int(sampler.repeats(epoch).sum()) for epoch in range(30)]
    assert len(set(lengths)) > 1
    first_position, orders = 0, set()
    for epoch, length in enumerate(lengths):
        assert sampler.locate(first_position) == (epoch, 0)
        assert sampler.locate(first_position + length - 1) == (epoch, length - 1)
        held = images(sampler, range(first_position, first_position + length))
        assert np.bincount(held).tolist() == sampler.repeats(epoch).tolist()
        orders.add(tuple(held))
        first_position += length
    assert len(orders) == 30


@pytest.mark.parametrize("start", [1, 8, 150])
def test_a_repeating_stream_resumes_by_position(start: int) -> None:
    whole = first(RepeatFactorSampler(FACTORS, 4, seed=5), 160)
    resumed = RepeatFactorSampler(FACTORS, 4, seed=5, start=start)
    assert first(resumed, 160 - start) == whole[start:]
    # What was asked for before changes nothing.
    assert images(resumed, range(20)) == [index for batch in whole[:5] for index, _ in batch]


def test_ranks_share_each_repeating_batch_between_them() -> None:
    whole = first(RepeatFactorSampler(FACTORS, 4, seed=5), 20)
    ranks = [
        first(RepeatFactorSampler(FACTORS, 4, seed=5, rank=r, world_size=2), 20) for r in (0, 1)
    ]
    for i, batch in enumerate(whole):
        assert sorted(ranks[0][i] + ranks[1][i]) == sorted(batch)


def test_factors_of_one_are_the_plain_stream() -> None:
    plain, repeating = StreamSampler(7, 3, seed=9), RepeatFactorSampler(np.ones(7), 3, seed=9)
    assert first(repeating, 20) == first(plain, 20)
    assert repeating.epoch_size == plain.epoch_size == 7
    assert RepeatFactorSampler(FACTORS, 3, seed=9).epoch_size == 9  # 8.8 on average


@pytest.mark.parametrize(
    ("factors", "message"),
    [([1.0, 0.5], "at least 1"), ([np.nan], "at least 1"), ([], "no images")],
)
def test_factors_that_are_refused(factors: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RepeatFactorSampler(np.array(factors), 2, seed=0)


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
