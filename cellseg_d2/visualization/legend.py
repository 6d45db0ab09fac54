"""A band with the classes' colours, names and counts beneath a picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib.font_manager import findfont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .colors import Color

INK: Color = (30, 30, 30)
PAPER: Color = (255, 255, 255)


@cache
def text_font(pixels: int) -> ImageFont.FreeTypeFont:
    """The font of legends and titles: the one that matplotlib brings along, on every machine.

    Args:
        pixels: its size.
    """
    return ImageFont.truetype(findfont("DejaVu Sans"), pixels)


def text_size_for(width: int) -> int:
    """The size of text, in pixels, that stays readable when a picture is shown smaller."""
    return min(max(width // 60, 14), 40)


def add_legend(
    picture: NDArray[np.uint8],
    names: Sequence[str],
    colors: Sequence[Color],
    counts: Sequence[int] | None = None,
) -> NDArray[np.uint8]:
    """Puts the legend into a band beneath a picture, in as many rows as it needs.

    Args:
        picture: (H, W, 3) uint8 RGB; where it is narrower than a legend's entry, it gets a margin.
        names: of the K classes.
        colors: of the K classes, RGB 0–255.
        counts: how many instances each class has here; None leaves the counts out.

    Returns:
        (H + band, max(W, widest entry), 3) uint8 RGB.
    """
    size = text_size_for(picture.shape[1])
    font = text_font(size)
    texts = list(names)
    if counts is not None:
        texts = [f"{name} ({count:,})" for name, count in zip(names, counts, strict=True)]
    row_height = round(size * 1.6)
    gap = size
    widths = [row_height + int(np.ceil(font.getlength(text))) + gap for text in texts]
    width = max([picture.shape[1], *(entry + gap for entry in widths)])

    places = []
    x, row = gap, 0
    for entry in widths:
        if x > gap and x + entry > width:
            x, row = gap, row + 1
        places.append((x, row))
        x += entry
    band = Image.new("RGB", (width, (row + 1) * row_height + size // 2), PAPER)
    draw = ImageDraw.Draw(band)
    for text, color, (x, row) in zip(texts, colors, places, strict=True):
        middle = size // 4 + row * row_height + row_height // 2
        draw.rectangle((x, middle - size // 2, x + size, middle + size - size // 2), color, INK)
        draw.text((x + row_height, middle), text, INK, font, anchor="lm")
    return np.concatenate([with_margin(picture, width), np.asarray(band)])


def with_margin(picture: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Centres a picture between white margins.

    Args:
        picture: (H, W, 3) uint8 RGB.
        width: of the result, at least W.
    """
    missing = width - picture.shape[1]
    sides = (missing // 2, missing - missing // 2)
    return np.pad(picture, ((0, 0), sides, (0, 0)), constant_values=PAPER[0])
