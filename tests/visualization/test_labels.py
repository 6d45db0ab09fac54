"""Oracle: rectangles placed by hand."""

from __future__ import annotations

import numpy as np

from cellseg_d2.visualization.labels import LabelPlacer

EXTENT = (20.0, 8.0)


def box(*corners: float) -> np.ndarray:
    return np.array(corners, np.float64)


def test_a_label_stands_above_its_box() -> None:
    assert LabelPlacer((100, 100), 1).place(box(30, 40, 50, 60), EXTENT) == (30, 31)


def test_at_the_upper_border_it_stands_below() -> None:
    assert LabelPlacer((100, 100), 1).place(box(30, 2, 50, 20), EXTENT) == (30, 21)


def test_at_the_right_border_it_is_pushed_back() -> None:
    assert LabelPlacer((100, 100), 1).place(box(95, 40, 99, 60), EXTENT) == (80, 31)


def test_positions_are_in_image_pixels() -> None:
    assert LabelPlacer((100, 100), 2).place(box(15, 20, 25, 30), EXTENT) == (15, 15.5)


def test_labels_take_the_free_sides_and_then_none() -> None:
    placer = LabelPlacer((100, 100), 1)
    target = box(40, 40, 50, 50)
    places = [placer.place(target, EXTENT) for _ in range(5)]
    assert places == [(40, 31), (40, 51), (51, 40), (19, 40), None]


def test_with_overlap_a_label_always_has_a_place_inside() -> None:
    placer = LabelPlacer((100, 100), 1)
    target = box(40, 40, 50, 50)
    places = [placer.place(target, EXTENT, overlap=True) for _ in range(6)]
    assert places[:5] == [(40, 31), (40, 51), (51, 40), (19, 40), (40, 31)]
    assert placer.place(box(0, 0, 100, 100), EXTENT, overlap=True) == (0, 0)


def test_the_middle_of_cells_stays_free() -> None:
    placer = LabelPlacer((100, 100), 1)
    placer.keep_free(np.array([[30.0, 25.0, 50.0, 45.0]]))
    assert placer.place(box(30, 40, 50, 60), EXTENT) == (30, 61)


def test_a_label_wider_than_the_picture_has_no_place() -> None:
    placer = LabelPlacer((10, 10), 1)
    assert placer.place(box(2, 2, 5, 5), EXTENT) is None
    assert placer.place(box(2, 2, 5, 5), EXTENT, overlap=True) == (0, 0)
