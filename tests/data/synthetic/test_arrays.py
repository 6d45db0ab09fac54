"""Windows over the edge of an image."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg_d2.data.synthetic.arrays import clip_window


@pytest.mark.parametrize("corner", [(2, 3), (-2, 5), (4, -1), (-1, -1), (7, 9)])
def test_a_clipped_window_shows_the_same_pixels(corner):
    """The oracle pads the image so far that no window leaves it."""
    image = np.arange(80).reshape(8, 10)
    padded = np.pad(image, 5, constant_values=-1)
    window = padded[corner[0] + 5 : corner[0] + 9, corner[1] + 5 : corner[1] + 9]
    here, there = clip_window(corner, 4, image.shape)
    np.testing.assert_array_equal(image[here], window[there])
    assert image[here].size == (window >= 0).sum()
