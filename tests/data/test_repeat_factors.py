"""Repeat factors against Detectron2's own, and one worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data.samplers import RepeatFactorTrainingSampler

from cellseg_d2 import ConfigError
from cellseg_d2.data.repeat_factors import image_repeat_factors


def records(classes_of_images: list[list[int]]) -> list[dict]:
    return [
        {
            "kept_ids": {c: np.arange(1, 4, dtype=np.int32) for c in classes},
            "annotations": [{"category_id": c} for c in classes for _ in range(3)],
        }
        for classes in classes_of_images
    ]


def test_worked_by_hand() -> None:
    # Class 0 in 8 of 8 images, class 3 in 2, class 2 in 1; threshold 1/2.
    dicts = records([[0], [0, 3], [0], [0, 2, 3], [0], [0], [0], [0]])
    factors = image_repeat_factors(dicts, 0.5)
    assert factors == pytest.approx([1, 2**0.5, 1, 2, 1, 1, 1, 1])


@pytest.mark.parametrize("threshold", [0.01, 0.2, 1.0])
def test_equal_to_upstream(threshold: float) -> None:
    rng = np.random.default_rng(2)
    shares = [0.9, 0.5, 0.1, 0.03]
    dicts = records([[c for c in range(4) if rng.random() < shares[c]] for _ in range(150)])
    expected = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, threshold)
    assert expected.max() > 1 or threshold == 0.01
    np.testing.assert_allclose(image_repeat_factors(dicts, threshold), expected, rtol=1e-6)


def test_images_and_files_without_instances() -> None:
    dicts = records([[], [1], [], []])
    dicts[2]["kept_ids"] = {1: np.zeros(0, np.int32)}  # all its cells were below the least area
    assert image_repeat_factors(dicts, 1.0).tolist() == [1, 2, 1, 1]
    assert image_repeat_factors(records([[], []]), 1.0).tolist() == [1, 1]


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_a_threshold_that_is_no_share_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="REPEAT_THRESHOLD"):
        image_repeat_factors(records([[0]]), threshold)
