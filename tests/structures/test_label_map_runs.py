"""Oracles: pycocotools and ``np.where`` on one bitmap per id; a disc worked out by hand."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellseg_d2.structures import encode_label_map

ID_SETS = [(0, 1), (0, 1, 2, 3), (0, 7, 65535, 65536), (0, 2**31 - 1, 2**24 + 1, 5)]


def assert_as_one_pass_per_id(label_map: np.ndarray) -> None:
    found = encode_label_map(label_map)
    ids = np.unique(label_map)
    ids = ids[ids != 0]
    np.testing.assert_array_equal(found.ids, ids)
    rles = found.rles()
    assert len(found) == len(rles) == len(found.boxes) == len(found.areas) == len(ids)
    for i, instance_id in enumerate(ids):
        mask = label_map == instance_id
        y, x = np.where(mask)
        assert found.boxes[i].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert found.areas[i] == mask.sum()
        assert rles[i] == mask_util.encode(np.asfortranarray(mask))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_maps(data):
    ids = data.draw(st.sampled_from(ID_SETS))
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))
    choice = data.draw(hnp.arrays(np.int64, shape, elements=st.integers(0, len(ids) - 1)))
    dtype = data.draw(st.sampled_from([np.int32, np.int64, np.uint32]))
    assert_as_one_pass_per_id(np.array(ids, dtype=dtype)[choice])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, ">i4", np.uint64])
def test_dtypes_and_layouts(dtype):
    label_map = np.zeros((5, 7), dtype=dtype)
    label_map[1:3, 2:6] = 9
    label_map[:, 6] = 100
    assert_as_one_pass_per_id(label_map)
    assert_as_one_pass_per_id(np.asfortranarray(label_map))
    assert_as_one_pass_per_id(label_map[::-1, ::2])


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (4, 5)])
def test_one_id_over_the_whole_image(shape):
    found = encode_label_map(np.full(shape, 3, dtype=np.int32))
    assert found.boxes.tolist() == [[0, 0, shape[1], shape[0]]]
    assert found.areas.tolist() == [shape[0] * shape[1]]
    assert_as_one_pass_per_id(np.full(shape, 3, dtype=np.int32))


def test_first_and_last_column_and_row():
    label_map = np.zeros((6, 8), dtype=np.int32)
    label_map[:, 0] = 4
    label_map[:, 7] = 2
    label_map[0, 1:7] = 9
    label_map[5, 1:7] = 1
    assert_as_one_pass_per_id(label_map)


def test_run_over_the_end_of_a_column():
    # Bottom of column 0 and top of column 1 are one run, though they do not touch.
    label_map = np.zeros((4, 3), dtype=np.int32)
    label_map[3, 0] = label_map[0, 1] = 5
    found = encode_label_map(label_map)
    assert len(found.runs.starts) == 1
    assert found.boxes.tolist() == [[0, 0, 2, 4]]
    assert_as_one_pass_per_id(label_map)


def test_several_components_are_one_instance():
    label_map = np.zeros((20, 30), dtype=np.int32)
    label_map[2:5, 3:6] = 8
    label_map[10:15, 20:29] = 8
    found = encode_label_map(label_map)
    assert found.ids.tolist() == [8]
    assert found.boxes.tolist() == [[3, 2, 29, 15]]
    assert found.areas.tolist() == [9 + 45]


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0), (0, 0)])
def test_nothing(shape):
    found = encode_label_map(np.zeros(shape, dtype=np.int32))
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.ids.dtype == found.boxes.dtype == np.int32
    assert found.areas.shape == (0,)
    assert found.rles() == []


def test_disc_by_hand():
    # Radius 2: rows of 1, 3, 5, 3, 1 pixels, 13 in all.
    yy, xx = np.mgrid[:9, :10]
    found = encode_label_map(6 * ((yy - 4) ** 2 + (xx - 5) ** 2 <= 4))
    assert found.ids.tolist() == [6]
    assert found.areas.tolist() == [13]
    assert found.boxes.tolist() == [[3, 2, 8, 7]]
    # Down the columns from (x, y) = (3, 4): background to there, 1, to the next, 3, 5, 3, 1, rest.
    counts = [3 * 9 + 4, 1, 7, 3, 5, 5, 5, 3, 7, 1, 90 - 7 * 9 - 5]
    expected = mask_util.frPyObjects({"size": [9, 10], "counts": counts}, 9, 10)
    assert found.rles() == [expected]


def test_long_runs_take_several_characters():
    label_map = np.zeros((1500, 1400), dtype=np.int32)
    label_map[700:703, 1398] = 1
    label_map[:, 10:1300] = 2
    label_map[5:1400:7, 3] = 3
    assert_as_one_pass_per_id(label_map)


@pytest.mark.parametrize(
    ("label_map", "error"),
    [
        (np.zeros((2, 3), dtype=np.float64), TypeError),
        (np.zeros((2, 3), dtype=bool), TypeError),
        (np.zeros((2, 3, 1), dtype=np.int32), ValueError),
        (np.array([[0, -1]]), ValueError),
        (np.array([[0, 2**31]]), ValueError),
        (np.array([[0, 2**63]], dtype=np.uint64), ValueError),
    ],
)
def test_refusals(label_map, error):
    with pytest.raises(error):
        encode_label_map(label_map)
