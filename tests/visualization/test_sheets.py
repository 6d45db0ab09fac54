"""Oracle: the colours of flat pictures, found again on the sheet."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg_d2.visualization.colors import class_colors, class_names
from cellseg_d2.visualization.sheets import SheetRow, contact_sheet, sheet_style, thumbnail
from cellseg_d2.visualization.visualizer import OverlayStyle

NAMES, COLORS = class_names(4), class_colors(4)


def flat(height: int, width: int, *color: int) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((50, 100), (40, 80)), ((400, 200), (80, 40)), ((1, 1), (80, 80)), ((3000, 2), (80, 1))],
)
def test_thumbnails_keep_their_proportions(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    small = thumbnail(flat(*size, 9, 8, 7), 80)
    assert small.shape == (*expected, 3) and (small == (9, 8, 7)).all()


@pytest.mark.parametrize("across", [1, 2, 5])
def test_every_picture_is_on_the_sheet_in_reading_order(across: int) -> None:
    rows = [
        SheetRow(f"image {k}", [flat(60, 90, 10 + k, 0, 90), flat(33, 35, 10 + k, 90, 0)])
        for k in range(3)
    ]
    sheet = contact_sheet(rows, ("image", "ground truth"), NAMES, COLORS, side=60, across=across)
    places = []
    for row in rows:
        for picture, area in zip(row.pictures, (40 * 60, 57 * 60), strict=True):
            found = (sheet == picture[0, 0]).all(axis=2)
            assert found.sum() == area
            ys, xs = np.nonzero(found)
            # Both pictures of an image are centred in squares of one height.
            places.append((round(ys.mean() / 20), xs.min()))
    assert places == sorted(places)
    for color in COLORS:
        assert (sheet == color).all(axis=2).sum() >= 100


def test_long_titles_are_cut() -> None:
    picture = flat(50, 50, 1, 2, 3)
    sheet = contact_sheet([SheetRow("x" * 500, [picture])], ("image",), NAMES, COLORS, side=100)
    assert (sheet[:, -2:] == 255).all()


def test_long_titles_take_the_lines_that_they_need() -> None:
    picture = flat(50, 50, 1, 2, 3)
    heights = [
        contact_sheet(
            [SheetRow(title, [picture])], ("",), NAMES, COLORS, side=100, title_lines=lines
        ).shape[0]
        for title, lines in (("short", 1), ("short", 3), ("word " * 9, 2), ("word " * 9, 9))
    ]
    assert heights[0] == heights[1] < heights[2] < heights[3]


def test_faults_are_named() -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], ("image",), NAMES, COLORS)
    with pytest.raises(ValueError, match="0 pictures for the columns image, truth"):
        contact_sheet([SheetRow("a", [])], ("image", "truth"), NAMES, COLORS)


def test_small_pictures_have_no_labels() -> None:
    style = sheet_style(OverlayStyle(alpha=0.2, scale=3))
    assert (style.labels, style.boxes, style.alpha, style.scale) == ("none", False, 0.2, 3)
