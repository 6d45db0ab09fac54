"""Views of an image whose finder makes no mistakes: all of them have to give the same cells."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Instances

from cellseg_d2 import ConfigError
from cellseg_d2.data.synthetic import make_label_map
from cellseg_d2.inference.dihedral import SYMMETRIES
from cellseg_d2.inference.ensemble import MergedFinder
from cellseg_d2.inference.tta import TurnedFinder, augmented_finders, views_of
from cellseg_d2.structures import RLEMasks

from .models import tiny_config


def find_ids(images: list[np.ndarray], scale: float = 1.0) -> list[Instances]:
    """Read cells off an image that shows their ids: red + 256 green, the class in blue."""
    answers = []
    for image in images:
        label_map = image[:, :, 0] + 256 * image[:, :, 1].astype(int)
        ids = np.unique(label_map)[1:]
        masks = [mask_util.encode(np.asfortranarray(label_map == i)) for i in ids]
        rle_masks = RLEMasks(masks, label_map.shape)
        answers.append(
            Instances(
                label_map.shape,
                pred_boxes=rle_masks.get_bounding_boxes(),
                scores=torch.from_numpy(1 - ids / 1000).float(),
                pred_classes=torch.from_numpy(ids % 3),
                pred_masks=rle_masks,
            )
        )
    return answers


def picture(size: tuple[int, int], cells: int, seed: int = 0) -> np.ndarray:
    label_map = make_label_map(np.random.default_rng(seed), size, cells)
    return np.stack([label_map % 256, label_map // 256, 0 * label_map], 2).astype(np.uint8)


def assert_equal(a: Instances, b: Instances) -> None:
    assert a.image_size == b.image_size and len(a) == len(b)
    assert a.pred_masks.rles == b.pred_masks.rles
    for name in ("scores", "pred_classes"):
        assert torch.equal(a.get(name), b.get(name))
    assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)


@pytest.mark.parametrize("name", SYMMETRIES)
def test_every_view_gives_the_same_cells(name: str) -> None:
    images = [picture((90, 130), 25), picture((64, 40), 5, seed=1), picture((30, 30), 0)]
    for found, expected in zip(TurnedFinder(find_ids, name)(images), find_ids(images), strict=True):
        assert_equal(found, expected)


@pytest.mark.parametrize("method", ["fusion", "nms"])
def test_all_views_merged_give_the_same_cells(method: str) -> None:
    images = [picture((90, 130), 25), picture((64, 40), 5, seed=1), picture((30, 30), 0)]
    finders = augmented_finders(find_ids, list(SYMMETRIES), [1.0, 2.0])
    assert len(finders) == 16
    merged = MergedFinder(finders, method=method, threshold=0.5, max_detections=100)
    for found, expected in zip(merged(images), find_ids(images), strict=True):
        assert_equal(found, expected)
    assert len(merged(images[:1])[0]) == 25


def test_the_best_of_an_image_are_kept() -> None:
    finders = augmented_finders(find_ids, ["none", "rot90"], [1.0])
    merged = MergedFinder(finders, method="fusion", threshold=0.5, max_detections=7)
    (found,) = merged([picture((90, 130), 25)])
    assert_equal(found, find_ids([picture((90, 130), 25)])[0][:7])


def test_scales_are_handed_on_with_every_transform() -> None:
    seen = []

    def find(images: list[np.ndarray], scale: float = 1.0) -> list[Instances]:
        seen.append((images[0].shape[:2], scale))
        return find_ids(images)

    for one in augmented_finders(find, ["none", "transpose"], [1.0, 0.5]):
        one([picture((90, 130), 3)])
    wide, tall = (90, 130), (130, 90)
    assert seen == [(wide, 1.0), (tall, 1.0), (wide, 0.5), (tall, 0.5)]


def test_views_of_a_config() -> None:
    assert views_of(tiny_config("TEST.TTA.SCALES", "[2.0]")) == (["none"], [1.0])
    options = ["TEST.TTA.ENABLED", "True", "TEST.TTA.SCALES", "[1, 1.25]"]
    views = views_of(tiny_config(*options))
    assert views == (["none", "hflip", "vflip", "rot180"], [1.0, 1.25])
    with pytest.raises(ConfigError, match="rot45"):
        views_of(tiny_config(*options, "TEST.TTA.TRANSFORMS", "['rot45']"))
