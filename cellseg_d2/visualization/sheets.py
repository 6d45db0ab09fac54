"""Contact sheets: several images on one page, each beside its ground truth or its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .colors import Color
from .legend import INK, PAPER, add_legend, text_font
from .visualizer import OverlayStyle

_GAP = 12
_TEXT = 18
_LINE = 28


@dataclass(frozen=True)
class SheetRow:
    """One image of a sheet.

    Attributes:
        title: what stands above it; wrapped and cut where it is longer than the row.
        pictures: (H, W, 3) uint8 RGB, one for each of the sheet's columns.
    """

    title: str
    pictures: Sequence[NDArray[np.uint8]]


def thumbnail(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Fits a picture into a square, its proportions kept.

    Args:
        picture: (H, W, 3) uint8 RGB.
        side: of the square, in pixels.

    Returns:
        (h, w, 3) uint8 RGB, the longer side being `side`. Small pictures keep their pixels' edges.
    """
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize(size, how))


def sheet_style(style: OverlayStyle) -> OverlayStyle:
    """The style for the small pictures of a sheet: masks and thicker outlines, nothing else."""
    return replace(style, boxes=False, labels="none", outline_width=2 * style.outline_width)


def contact_sheet(
    rows: Sequence[SheetRow],
    columns: Sequence[str],
    names: Sequence[str],
    colors: Sequence[Color],
    *,
    side: int = 420,
    across: int = 1,
    title_lines: int = 1,
) -> NDArray[np.uint8]:
    """Arranges images in a grid, with the columns' names above and the classes' colours beneath.

    Args:
        rows: at least one image, each with a picture for every column; pictures may differ in
            size.
        columns: such as ("image", "ground truth", "prediction").
        names: of the classes.
        colors: of the classes, RGB 0–255.
        side: of the square that each picture is fitted into, in pixels.
        across: how many images stand side by side before a new line begins.
        title_lines: how many lines a title may take before it is cut.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: there is no image, or one has more or fewer pictures than there are columns.
    """
    if not rows:
        raise ValueError("a sheet needs at least one image")
    across = min(across, len(rows))
    block_width = len(columns) * (side + _GAP) + _GAP
    titles = [_wrap(row.title, block_width - 2 * _GAP, title_lines) for row in rows]
    title_height = max(len(title) for title in titles) * _LINE
    block_height = side + title_height + _GAP
    lines = -(-len(rows) // across)
    size = (across * block_width, _GAP + _LINE + lines * block_height)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    font = text_font(_TEXT)
    for block in range(across):
        for column, name in enumerate(columns):
            middle = block * block_width + _GAP + column * (side + _GAP) + side // 2
            draw.text((middle, _GAP + _LINE // 2), name, INK, font, anchor="mm")
    for index, row in enumerate(rows):
        if len(row.pictures) != len(columns):
            raise ValueError(f"{len(row.pictures)} pictures for the columns {', '.join(columns)}")
        left = index % across * block_width + _GAP
        top = _GAP + _LINE + index // across * block_height
        for line, text in enumerate(titles[index]):
            draw.text((left, top + line * _LINE + _LINE // 2), text, INK, font, anchor="lm")
        for column, picture in enumerate(row.pictures):
            small = thumbnail(picture, side)
            x = left + column * (side + _GAP) + (side - small.shape[1]) // 2
            y = top + title_height + (side - small.shape[0]) // 2
            sheet.paste(Image.fromarray(small), (x, y))
    return add_legend(np.asarray(sheet), names, colors)


def _wrap(text: str, width: int, lines: int) -> list[str]:
    """Break a text at spaces into at most `lines` lines, the last of them cut where it must be."""
    font = text_font(_TEXT)
    wrapped: list[str] = []
    while len(wrapped) < lines - 1 and font.getlength(text) > width:
        words = text.split(" ")
        fitting = len(words) - 1
        while fitting > 1 and font.getlength(" ".join(words[:fitting])) > width:
            fitting -= 1
        wrapped.append(_cut(" ".join(words[: max(fitting, 1)]), width))
        text = " ".join(words[max(fitting, 1) :])
    return [*wrapped, _cut(text, width)]


def _cut(text: str, width: int) -> str:
    font = text_font(_TEXT)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
