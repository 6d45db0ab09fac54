from __future__ import annotations

import itertools

from cellseg_d2.visualization.colors import CLASS_NAMES, CLASS_PALETTE, class_colors, class_names


def test_the_first_four_are_the_palette() -> None:
    assert class_colors(4) == [(230, 60, 60), (60, 140, 255), (255, 200, 0), (40, 200, 90)]
    assert class_colors(2) == list(CLASS_PALETTE[:2])
    assert class_colors(0) == []


def test_further_colors_do_not_depend_on_the_number_of_classes() -> None:
    assert class_colors(12)[:9] == class_colors(9)


def test_twelve_colors_can_be_told_apart() -> None:
    for first, second in itertools.combinations(class_colors(12), 2):
        assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) >= 90


def test_names_are_those_of_the_label_files() -> None:
    assert class_names(4) == list(CLASS_NAMES)
    assert class_names(5)[-1] == "class5"
