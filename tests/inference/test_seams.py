"""Neighbouring tiles that do not agree; oracle: the whole image, or boxes worked out by hand."""

from __future__ import annotations

import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.structures import Instances
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from cellseg_d2.inference.tile_grid import make_grid

from .component_finder import (
    as_instances,
    cells_image,
    components_of,
    contents,
    find_components,
    paint,
    tiled,
)


class Jitter:
    """Redraws each cell by up to a pixel, in each tile in another way, and scores it anew."""

    def __init__(self, seed: int, change_class: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.change_class = change_class

    def __call__(self, images: list[np.ndarray]) -> list[Instances]:
        return [self.redrawn(components_of(image)) for image in images]

    def redrawn(self, found: Instances) -> Instances:
        rles, classes = [], []
        for mask, category in zip(found.pred_masks, found.pred_classes.tolist(), strict=True):
            mask = mask.numpy()
            shift = self.rng.integers(-1, 2, 2)
            change = (lambda m: m, ndimage.binary_dilation, ndimage.binary_erosion)
            mask = change[self.rng.integers(3)](np.pad(mask, 2))
            mask = np.roll(mask, shift, (0, 1))[2:-2, 2:-2]
            rles.append(mask_util.encode(np.asfortranarray(mask.astype(np.uint8))))
            classes.append(self.rng.integers(3) if self.change_class else category)
        scores = self.rng.uniform(0.05, 1, len(rles))
        return as_instances(found.image_size, rles, scores, classes)


@pytest.mark.parametrize("change_class", [False, True])
@pytest.mark.parametrize(
    ("size", "overlap", "gap"), [(40, 12, 5), (50, 24, 5), (64, 24, 5), (60, 40, 2)]
)
def test_tiles_that_draw_cells_differently_find_each_once(size, overlap, gap, change_class: bool):
    # At a gap of 2 neighbours overlap once they are redrawn; then no cell exceeds the overlap.
    for seed in range(6):
        image = cells_image(seed, (150, 190), (6, 14), 60, hollow=10, gap=gap)
        expected = components_of(image)
        find = Jitter(seed, change_class)
        found = tiled(image, size, overlap, find)
        assert len(found) == len(expected)
        crowd = [0] * len(expected)
        iou = mask_util.iou(found.pred_masks.rles, expected.pred_masks.rles, crowd)
        rows, columns = linear_sum_assignment(-iou)
        assert len(rows) == len(expected)
        assert iou[rows, columns].min() > 0.3
        if not change_class:
            same = found.pred_classes[rows] == expected.pred_classes[columns]
            assert same.all()


def boxes_finder(answers: dict[tuple[int, int], list[tuple]]):
    """Answers by the (height, width) of tiles, as lists of (x0, y0, x1, y1, score, class)."""

    def find(images: list[np.ndarray]) -> list[Instances]:
        results = []
        for image in images:
            size = image.shape[:2]
            rles, scores, classes = [], [], []
            for x0, y0, x1, y1, score, category in answers[tuple(image[0, 0])]:
                mask = np.zeros(size, np.uint8, order="F")
                mask[y0:y1, x0:x1] = 1
                rles.append(mask_util.encode(mask))
                scores.append(score)
                classes.append(category)
            results.append(as_instances(size, rles, scores, classes))
        return results

    return find


def two_tiles(left: list[tuple], right: list[tuple]) -> Instances:
    """Tiles of columns 0 to 63 and 32 to 95 in 96: the core bound is at 48."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[0, 0], image[0, 32] = 1, 2
    find = boxes_finder({(1, 1, 1): left, (2, 2, 2): right})
    assert make_grid((64, 96), 64, 32).columns.starts.tolist() == [0, 32]
    return tiled(image, 64, 32, find)


def spans(found: Instances) -> list[tuple[int, int]]:
    return [(int(box[0]), int(box[2])) for box in found.pred_boxes.tensor]


def test_the_responsible_tile_is_believed():
    # Both whole; each tile sees the other one's cell alone, or with its own.
    found = two_tiles([(36, 5, 46, 15, 0.5, 0)], [(5, 5, 13, 15, 0.9, 1)])
    assert spans(found) == [(36, 46)] and found.scores.tolist() == [0.5]
    found = two_tiles([(50, 5, 60, 15, 0.9, 0)], [(18, 5, 29, 15, 0.5, 1)])
    assert spans(found) == [(50, 61)] and found.pred_classes.tolist() == [1]
    assert len(two_tiles([(50, 5, 60, 15, 0.9, 0)], [])) == 0
    assert len(two_tiles([], [(5, 5, 13, 15, 0.9, 1)])) == 0


def test_a_cell_that_both_or_neither_calls_its_own_is_kept_once():
    both = two_tiles([(42, 5, 53, 15, 0.9, 0)], [(11, 5, 23, 15, 0.5, 1)])
    assert spans(both) in ([(42, 53)], [(43, 55)])
    neither = two_tiles([(43, 5, 55, 15, 0.9, 0)], [(10, 5, 21, 15, 0.5, 1)])
    assert spans(neither) in ([(43, 55)], [(42, 53)])


def test_cells_in_cells_are_matched_one_to_one():
    large, small = (36, 5, 60, 29, 0.9, 0), (40, 10, 46, 16, 0.8, 0)
    shifted = [(x0 - 32, y0, x1 - 32, y1, s, c) for x0, y0, x1, y1, s, c in (large, small)]
    assert spans(two_tiles([large, small], shifted)) == [(36, 60), (40, 46)]
    # The one that its responsible tile does not see is not matched with the one around it.
    assert spans(two_tiles([large, small], shifted[:1])) == [(36, 60), (40, 46)]
    assert spans(two_tiles([large], shifted)) == [(36, 60)]


def test_two_classes_of_one_cell_stay_two_cells():
    cell = (38, 5, 56, 15)
    moved = (6, 5, 24, 15)
    found = two_tiles([(*cell, 0.9, 0), (*cell, 0.3, 1)], [(*moved, 0.4, 0), (*moved, 0.8, 1)])
    assert sorted(found.pred_classes.tolist()) == [0, 1]
    # Of cut cells too, which are joined in their class.
    cell, moved = (10, 5, 64, 15), (0, 5, 50, 15)
    found = two_tiles([(*cell, 0.9, 0), (*cell, 0.3, 1)], [(*moved, 0.4, 0), (*moved, 0.8, 1)])
    assert spans(found) == [(10, 82)] * 2
    assert found.pred_classes.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])
    # Where one tile says this and the other that, it is one cell, of the better one's class.
    found = two_tiles([(*cell, 0.4, 0)], [(*moved, 0.8, 1)])
    assert spans(found) == [(10, 82)] and found.pred_classes.tolist() == [1]


def test_a_part_of_a_whole_cell_is_no_cell():
    # The right tile sees the cell from its border on, in two parts.
    cell = (20, 5, 44, 30, 0.5, 0)
    parts = [(0, 5, 12, 15, 0.9, 0), (0, 18, 12, 30, 0.9, 1)]
    assert spans(two_tiles([cell], parts)) == [(20, 44)]
    # Both see it: one whole, and the other, which is responsible, just not.
    found = two_tiles([(34, 5, 60, 15, 0.5, 0)], [(1, 5, 32, 15, 0.9, 0)])
    assert spans(found) == [(34, 60)]


def test_a_cell_whose_rest_is_not_found_is_kept_and_reported(caplog):
    # Centred in the core of the tile that cuts it.
    assert spans(two_tiles([(20, 5, 64, 15, 0.5, 0)], [])) == [(20, 64)]
    assert "1 cells end at the border of a tile" in caplog.text
    # Centred where the other tile is responsible, and sees nothing.
    caplog.clear()
    caplog.set_level(logging.INFO)
    assert len(two_tiles([(50, 5, 64, 15, 0.5, 0)], [])) == 0
    assert "1 detections that end at the border of a tile were left out" in caplog.text
    assert "1 cells end" not in caplog.text


@pytest.mark.parametrize(("left", "is_found"), [(10, True), (33, False)])
def test_a_cell_that_the_responsible_tiles_miss(left: int, is_found: bool, caplog):
    """Columns and rows 0 to 63 and 32 to 95; the lower tiles are responsible, and blind."""
    caplog.set_level(logging.INFO)
    image = np.zeros((96, 96, 3), np.uint8)
    paint(image, np.s_[40:60, left:86])
    calls = []

    def blind_below(images):
        # A row of tiles makes one batch.
        calls.append(len(images))
        return find_components([i if len(calls) == 1 else np.zeros_like(i) for i in images])

    found = tiled(image, 64, 32, blind_below)
    assert calls == [2, 2]
    # What is wider than a tile is seen whole by none: that two found it counts.
    assert contents(found) == (contents(components_of(image)) if is_found else [])
    assert ("1 cells larger than the overlap of tiles were joined" in caplog.text) == is_found
    assert ("were left out" in caplog.text) != is_found
