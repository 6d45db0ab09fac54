"""How large a pixel is, by what a TIFF's header says."""

from __future__ import annotations

import logging
import math
import re
from os import PathLike
from typing import Any
from xml.etree import ElementTree

import tifffile

from ..data.tiff_structure import open_first_page

logger = logging.getLogger(__name__)

# Micrometres in each unit: OME's and ImageJ's names, and the codes of ResolutionUnit (TIFF 6.0).
_MICROMETRES = {
    **{"µm": 1.0, "μm": 1.0, "um": 1.0, "\\u00b5m": 1.0, "micron": 1.0, "microns": 1.0},
    **{"micrometer": 1.0, "micrometre": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6},
    **{"inch": 25_400.0, "in": 25_400.0},
}
_RESOLUTION_UNITS = {2: 25_400.0, 3: 10_000.0}
# Outside of these a resolution is one for print or screen (72 dpi is 353 µm), not a microscope's.
_SMALLEST, _LARGEST = 0.01, 50.0
# Where the unit is one for print as well: 4800 dpi is 5.3 µm.
_LARGEST_FOR_PRINT = 5.0
# Headers round; pixels that differ by more than this are not square.
_SQUARE = 0.01


def read_pixel_size(path: str | PathLike[str]) -> float | None:
    """Read the side of a pixel from a TIFF's header.

    The first of these that there is: OME-XML's PhysicalSizeX and Y, Aperio's MPP, ImageJ's unit
    with XResolution and YResolution, these two with ResolutionUnit.

    Args:
        path: the file.

    Returns:
        Micrometres; None where the header states none, where what it states is a resolution for
        print (outside 0.01–50 µm; in inches, or by ResolutionUnit alone, above 5 µm), or where
        pixels are not square, which is logged.

    Raises:
        CellDataError: the file is no sound TIFF.
    """
    with open_first_page(path) as first:
        sides = _stated_sides(first.page)
    if sides is None or not all(_SMALLEST <= side <= _LARGEST for side in sides):
        return None
    if max(sides) > (1 + _SQUARE) * min(sides):
        logger.warning("%s: pixels of %g×%g µm are not square: measuring in pixels", path, *sides)
        return None
    return math.sqrt(sides[0] * sides[1])


def _stated_sides(page: tifffile.TiffPage) -> tuple[float, float] | None:
    """Width and height of a pixel in micrometres."""
    description = page.description
    if re.search(r"<(\w+:)?OME[\s>]", description[:4096]):
        return _from_ome(description)
    if mpp := re.search(r"\bMPP\s*=\s*([0-9.]+)", description):
        side = _number(mpp[1])
        return (side, side)
    unit, may_be_print = _RESOLUTION_UNITS.get(page.tags.valueof(296, 2)), True
    if description.startswith("ImageJ="):
        named = re.search(r"^unit=(.+?)\s*$", description, re.MULTILINE)
        if named:
            unit = _MICROMETRES.get(named[1].lower())
            may_be_print = unit == _MICROMETRES["inch"]
    sides = [_per_pixel(page.tags.valueof(code), unit) for code in (282, 283)]
    if None in sides:
        return None
    width, height = sides[0] or 0.0, sides[1] or 0.0
    if may_be_print and max(width, height) > _LARGEST_FOR_PRINT:
        return None
    return width, height


def _from_ome(description: str) -> tuple[float, float] | None:
    if "<!DOCTYPE" in description or "<!ENTITY" in description:
        return None
    for element in ElementTree.fromstring(description).iter():
        if element.tag.rpartition("}")[2] == "Pixels":
            sides = [
                _number(element.get(f"PhysicalSize{axis}", ""))
                * _MICROMETRES.get(element.get(f"PhysicalSize{axis}Unit", "µm"), math.nan)
                for axis in "XY"
            ]
            return (sides[0], sides[1])
    return None


def _per_pixel(resolution: Any, unit: float | None) -> float | None:
    """The micrometres of a pixel, from pixels in a unit as a fraction, as the tag should hold."""
    if not isinstance(resolution, tuple) or len(resolution) != 2 or 0 in resolution or not unit:
        return None
    return unit * float(resolution[1]) / float(resolution[0])


def _number(text: str) -> float:
    """A number; not a number where the text is none, which then lies in no range."""
    try:
        return float(text)
    except ValueError:
        return math.nan
