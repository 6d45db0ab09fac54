"""The colours and default names of cell classes, the same in every picture."""

from __future__ import annotations

import colorsys

Color = tuple[int, int, int]

CLASS_NAMES = ("class1", "class2", "class3", "class4")
# Red, blue, amber and green, RGB 0–255: apart from each other and from pink and purple tissue.
CLASS_PALETTE: tuple[Color, ...] = ((230, 60, 60), (60, 140, 255), (255, 200, 0), (40, 200, 90))

# Each step of the golden angle falls into the largest gap that the hues before it left.
_GOLDEN_ANGLE = 0.618034
# The start, among hundredths, that keeps twelve colours far apart and begins with no tissue colour.
_FIRST_HUE = 0.2
_BRIGHTNESS = (1.0, 0.75)


def class_colors(num_classes: int) -> list[Color]:
    """The colour of each class.

    Args:
        num_classes: K ≥ 0.

    Returns:
        K colours, RGB 0–255: the palette, then further saturated colours. They do not depend on K.
    """
    colors = list(CLASS_PALETTE[:num_classes])
    for step in range(num_classes - len(colors)):
        hue = (_FIRST_HUE + step * _GOLDEN_ANGLE) % 1
        rgb = colorsys.hsv_to_rgb(hue, 0.85, _BRIGHTNESS[step % 2])
        colors.append((round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255)))
    return colors


def class_names(num_classes: int) -> list[str]:
    """The default name of each class: `class1` … `classK`, as the label files are called."""
    return [f"class{category + 1}" for category in range(num_classes)]
