"""Oracle: the colours of the band's pixels."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg_d2.visualization.colors import class_colors, class_names
from cellseg_d2.visualization.legend import add_legend, with_margin


def picture(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


@pytest.mark.parametrize("size", [(33, 35), (200, 100), (50, 1000), (1500, 1500)])
@pytest.mark.parametrize("num_classes", [1, 4, 9])
def test_every_class_has_its_swatch_below_the_picture(
    size: tuple[int, int], num_classes: int
) -> None:
    colors = class_colors(num_classes)
    legend = add_legend(picture(*size), class_names(num_classes), colors, [7] * num_classes)
    assert (legend[: size[0]] == 128).all(axis=2).sum() == size[0] * size[1]
    band = legend[size[0] :]
    for color in colors:
        assert (band == color).all(axis=2).sum() >= 100
    # Nothing is cut: the band's margins are paper.
    edges = [band[:, :2], band[:, -2:], band[:1], band[-1:]]
    assert all((edge == 255).all() for edge in edges)


def test_a_narrow_picture_is_centred() -> None:
    legend = add_legend(picture(30, 10), ["a class of a long name"], [(255, 0, 0)])
    columns = np.flatnonzero((legend[15] == 128).all(axis=1))
    assert len(columns) == 10
    assert abs(columns[0] - (legend.shape[1] - 1 - columns[-1])) <= 1


def test_counts_are_written() -> None:
    texts = [
        add_legend(picture(20, 300), ["one"], [(255, 0, 0)], counts) for counts in (None, [5], [6])
    ]
    assert not np.array_equal(texts[0], texts[1]) and not np.array_equal(texts[1], texts[2])


def test_margins_are_white() -> None:
    wide = with_margin(picture(4, 6), 9)
    assert wide.shape == (4, 9, 3) and (wide[:, 0] == 255).all() and (wide[:, -2:] == 255).all()
