import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellseg_d2.structures.chunks import chunks_of_similar_size


@given(
    st.lists(st.tuples(st.integers(-3, 40), st.integers(-3, 40)), max_size=30),
    st.integers(1, 5000),
)
def test_every_window_with_area_is_in_one_chunk_within_the_limit(sizes, limit):
    sizes = torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2)
    chunks = list(chunks_of_similar_size(sizes, limit))
    indices = torch.cat([*chunks, torch.zeros(0, dtype=torch.int64)])
    assert sorted(indices.tolist()) == torch.nonzero((sizes > 0).all(dim=1))[:, 0].tolist()
    for chunk in chunks:
        padded = len(chunk) * int(sizes[chunk].max()) ** 2
        assert len(chunk) == 1 or padded <= limit


@pytest.mark.parametrize(("limit", "expected"), [(10_000, 1), (400, 2), (1, 4)])
def test_number_of_chunks(limit, expected):
    sizes = torch.tensor([[30, 2], [10, 10], [0, 50], [3, 8], [9, 10]])
    assert len(list(chunks_of_similar_size(sizes, limit))) == expected


def test_sizes_are_left_as_they_are():
    sizes = torch.tensor([[5.0, 0.0], [2.0, 3.0]])
    list(chunks_of_similar_size(sizes, 100))
    assert sizes.tolist() == [[5.0, 0.0], [2.0, 3.0]]
