"""The names of what was drawn, by hand-worked angles and factors."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg_d2.data.augmentation.choice import OneOf
from cellseg_d2.data.augmentation.warp import (
    Affine,
    Elastic,
    HFlip,
    OpticalDistortion,
    ResizedCrop,
    Rot90,
    Rotate,
    VFlip,
    Warp,
    WarpPrimitive,
    Zoom,
)
from cellseg_d2.data.augmentation.warp_maps import LensMap, about_center, rotation
from cellseg_d2.data.augmentation.warp_names import step_name

IMAGE = np.zeros((40, 60, 3), np.uint8)


@pytest.mark.parametrize(
    ("primitive", "name"),
    [
        (HFlip(1), "HFlip"),
        (VFlip(1), "VFlip"),
        (Rot90(1, [1]), "Rot90 90°"),
        (Rot90(1, [2]), "Rot90 180°"),
        (Rot90(1, [3]), "Rot90 -90°"),
        (Zoom(1.25, 1.25, prob=1), "Zoom ×1.25"),
        (ResizedCrop((0.64, 0.64), (1, 1), prob=1), "ResizedCrop ×1.25"),
        (Affine(scale=(0.8, 0.8), prob=1), "Affine ×0.80"),
        (Elastic(30, 12, prob=1), "Elastic"),
        (OneOf([OneOf([Elastic(30, 12), HFlip(0)], prob=1)], prob=1), "Elastic"),
    ],
    ids=str,
)
def test_a_warp_knows_what_was_drawn(primitive: WarpPrimitive, name: str) -> None:
    assert Warp([primitive]).get_transform(IMAGE).names == (name,)
    turned = Warp([Rot90(1, [1]), primitive]).get_transform(IMAGE)
    assert getattr(turned, "names", ("Rot90 90°", name)) == ("Rot90 90°", name)


def test_rotations_state_degrees_counter_clockwise() -> None:
    for degrees, text in ((12.34, "12.3°"), (-7, "-7°")):
        drawn = about_center(40, 60, rotation(degrees))
        assert step_name(Rotate(20), drawn) == f"Rotate {text}"
    assert step_name(OpticalDistortion(2), LensMap(-0.5, (0, 0), (4, 4))) == (
        "OpticalDistortion -0.50"
    )


def test_steps_that_do_nothing_have_no_name() -> None:
    assert Warp([Rot90(1, [0]), VFlip(1)]).get_transform(IMAGE).names == ("VFlip",)
    assert Warp([HFlip(0), VFlip(1), HFlip(0)]).get_transform(IMAGE).names == ("VFlip",)
