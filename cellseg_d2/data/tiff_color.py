"""From a page's samples, of whatever colour space and depth, to 8-bit RGB."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import cv2
import numpy as np

from ..errors import CellDataError
from .intensity import choose_range, needs_extent, scale_to_uint8, stated_range
from .notices import log_once
from .tiff_blocks import JPEG, has_planes
from .tiff_errors import tag_name
from .tiff_structure import FirstPage, check_ome_xml

logger = logging.getLogger(__name__)

# PhotometricInterpretation (TIFF 6.0, section 8).
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated
_COLOR_MAP = 320


class ColorPage:
    """How the samples of one page become colours; `read_image` says which and how.

    Args:
        first: the page, whose geometry has been checked.
        channel_order: as in `read_image`, passed by `check_arguments`.
        intensity_range: as in `read_image`, passed by `check_arguments`.

    Attributes:
        channels: how many of the samples of a pixel make its colour, 1 or 3; C below.
        dtype: of the samples.

    Raises:
        CellDataError: the page is no such image.
    """

    def __init__(
        self,
        first: FirstPage,
        channel_order: str,
        intensity_range: tuple[float, float] | None,
    ) -> None:
        self.first = first
        self.channels = _color_channels(first)
        assert first.page.dtype is not None  # refused before
        self.dtype = first.page.dtype
        self._swap = channel_order == "BGR"
        significant_bits = check_ome_xml(first)
        if first.num_pages > 1:
            log_once(
                logger,
                logging.WARNING,
                first.path,
                "reading the first of %d pages",
                first.num_pages,
            )
        self._given = intensity_range if self.dtype.itemsize > 1 else None
        self._is_palette = first.page.photometric == _PALETTE
        self._is_scaled = not self._is_palette and (
            self.dtype != np.uint8 or first.page.bitspersample != 8
        )
        self._stated = stated_range(first.page, significant_bits) if self._is_scaled else None
        self._range: tuple[float, float] | None = None

    def place(self, target: np.ndarray, plane: int, block: np.ndarray) -> None:
        """Store a strip or tile, or a part of it, without its alpha.

        Args:
            target: (h, w, C), written to.
            plane: that the block belongs to, where the page has planes.
            block: (h, w, samples) as decoded.
        """
        if has_planes(self.first):
            target[:, :, plane] = block[:, :, 0]
        else:
            target[:] = _drop_alpha(block) if block.shape[2] > self.channels else block

    def settle_range(self, extent: Callable[[], tuple[float, float]]) -> None:
        """Choose the intensities that become 0 and 255, before anything is converted.

        Args:
            extent: returns the least and the greatest sample of the whole image; called only where
                they matter.

        Raises:
            CellDataError: floats that are NaN or infinite.
        """
        if self._is_scaled:
            needed = needs_extent(self.dtype, self._stated, self._given)
            values = extent() if needed else (0.0, 0.0)
            self._range = choose_range(
                self.dtype, self.first.path, values, self._stated, self._given
            )

    def to_rgb(self, samples: np.ndarray) -> np.ndarray:
        """Convert the image, or any part of it.

        Args:
            samples: (h, w, C) as stored by `place`.

        Returns:
            (h, w, 3) uint8, RGB, contiguous; it may be `samples`.

        Raises:
            CellDataError: a palette without colours.
        """
        if self._is_palette:
            samples = _apply_palette(self.first, samples)
        elif self._range is not None:
            samples = scale_to_uint8(samples, *self._range)
        if self.first.page.photometric == _WHITE_IS_ZERO:
            samples = 255 - samples
        if samples.shape[2] == 1:
            return np.repeat(samples, 3, axis=2)
        return cv2.cvtColor(samples, cv2.COLOR_BGR2RGB) if self._swap else samples


def check_arguments(channel_order: str, intensity_range: tuple[float, float] | None) -> None:
    """Raise ValueError for an unknown channel order or an empty intensity range."""
    if channel_order not in ("RGB", "BGR"):
        raise ValueError(f"channel_order must be 'RGB' or 'BGR', not {channel_order!r}")
    if intensity_range is not None and not (
        math.isfinite(intensity_range[1] - intensity_range[0])
        and intensity_range[0] < intensity_range[1]
    ):
        raise ValueError(f"intensity_range must be (low, high) with low < high: {intensity_range}")


def _color_channels(first: FirstPage) -> int:
    """How many of the page's samples make the colour: 1 or 3. Others are refused."""
    page, samples = first.page, first.num_samples
    advice = "export the image as 8-bit RGB"
    if (
        page.dtype is None
        or page.dtype.kind not in "buif"
        or not isinstance(page.bitspersample, int)
    ):
        raise CellDataError(
            first.path,
            f"samples of {page.bitspersample} bits and format {tag_name(page.sampleformat)}",
            "integers or floats of one depth",
            advice,
        )
    photometric = page.photometric
    color = (
        photometric == _RGB
        or (photometric == _YCBCR and page.compression == JPEG)
        or (photometric == _BLACK_IS_ZERO and samples in (3, 4))
    )
    if color and samples in (3, 4):
        if photometric == _BLACK_IS_ZERO:
            log_once(
                logger, logging.WARNING, first.path, "%d grey samples are read as RGB", samples
            )
        # The colour conversion of JPEG is switched off by a fourth sample.
        if not (photometric == _YCBCR and samples == 4):
            return 3
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE) and samples in (1, 2):
        if samples == 2 and not set(page.extrasamples) & set(_ALPHA):
            log_once(logger, logging.WARNING, first.path, "the second sample is ignored as alpha")
        return 1
    raise CellDataError(
        first.path,
        f"{samples} samples a pixel in colour space {tag_name(photometric)}",
        "grey, palette or RGB, with or without alpha",
        advice,
    )


def _drop_alpha(block: np.ndarray) -> np.ndarray:
    """(h, w, 4) to (h, w, 3), or (h, w, 2) to (h, w, 1)."""
    if block.shape[2] == 4 and block.dtype in (np.uint8, np.uint16, np.float32):
        # OpenCV's types; NumPy's copy of three values out of four takes 10 times as long.
        return cv2.cvtColor(np.ascontiguousarray(block), cv2.COLOR_RGBA2RGB)
    return block[:, :, : block.shape[2] - 1]


def _apply_palette(first: FirstPage, indices: np.ndarray) -> np.ndarray:
    """Colours, (H, W, 3) uint8, of palette indices, (H, W, 1)."""
    colors = first.page.tags.valueof(_COLOR_MAP)
    num_colors = 2**first.page.bitspersample
    if indices.dtype.kind not in "bu" or np.shape(colors) != (3, num_colors):
        raise CellDataError(
            first.path,
            f"a palette image with a colour map of shape {np.shape(colors)}",
            f"a colour map of shape {(3, num_colors)}",
            "export the image as 8-bit RGB",
        )
    # Colour maps have 16 bits by definition; some writers fill in 8, and libtiff tells them so.
    colors = np.asarray(colors)
    colors = (colors if colors.max() < 256 else colors >> 8).astype(np.uint8)
    return np.ascontiguousarray(colors.T)[indices[:, :, 0].astype(np.intp)]
