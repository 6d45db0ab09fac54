"""Oracle: the finder itself on the whole image, from which its answer for tiles must not differ."""

from __future__ import annotations

import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from cellseg_d2 import add_cellseg_config
from cellseg_d2.data.synthetic import make_image
from cellseg_d2.data.tiff_window import ArrayWindows
from cellseg_d2.errors import CellDataError, ConfigError
from cellseg_d2.inference.tile_grid import make_grid
from cellseg_d2.inference.tiling import predict_tiled

from .component_finder import (
    as_instances,
    cells_image,
    components_of,
    contents,
    disc,
    find_components,
    paint,
    tiled,
)


@pytest.mark.parametrize(("size", "overlap"), [(16, 0), (24, 7), (32, 20), (40, 12), (64, 16)])
@pytest.mark.parametrize("shape", [(97, 131), (128, 64), (40, 200)])
def test_cells_of_all_sizes_are_those_of_the_whole_image(shape, size: int, overlap: int):
    for seed in range(3):
        image = cells_image(seed, shape, (1, 15), 60)
        expected = contents(components_of(image))
        assert len(expected) > 8
        assert contents(tiled(image, size, overlap)) == expected


@settings(max_examples=120, deadline=None)
@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)),
    st.integers(3, 20),
    st.data(),
)
def test_regions_of_any_form_are_those_of_the_whole_image(mask, size: int, data):
    # Two parts of a region that meanders through a seam may share little of either.
    overlap = data.draw(st.integers(0, 3 * size // 4))
    image = np.zeros((*mask.shape, 3), np.uint8)
    paint(image, mask, 2, 100)
    found = tiled(image, size, overlap, min_shared=1e-6, batch_size=data.draw(st.integers(1, 5)))
    assert contents(found) == contents(components_of(image))


@pytest.mark.parametrize("overlap", [0, 1, 5, 16, 30])
def test_noise_of_large_regions(overlap: int):
    rng = np.random.default_rng(overlap)
    image = np.zeros((150, 170, 3), np.uint8)
    paint(image, ndimage.gaussian_filter(rng.standard_normal((150, 170)), 3) > 0.05)
    found = tiled(image, 48, overlap, min_shared=1e-6)
    assert contents(found) == contents(components_of(image))


def test_a_cell_where_four_tiles_meet():
    grid = make_grid((100, 100), 64, 20)
    y, x = grid.rows.core_bounds[1], grid.columns.core_bounds[1]
    for radius in (3, 9.5, 10, 12, 30):
        for dy, dx in ((0, 0), (0.5, -0.5), (-4, 4)):
            image = np.zeros((100, 100, 3), np.uint8)
            paint(image, disc((100, 100), y + dy, x + dx, radius))
            assert contents(tiled(image, 64, 20)) == contents(components_of(image))


def test_a_cell_larger_than_tiles_is_joined_and_counted(caplog):
    caplog.set_level(logging.INFO)
    image = np.zeros((120, 120, 3), np.uint8)
    paint(image, disc((120, 120), 60, 60, 50) & ~disc((120, 120), 60, 60, 44), 3)
    paint(image, disc((120, 120), 60, 60, 5), 1)
    found = tiled(image, 40, 8)
    assert contents(found) == contents(components_of(image))
    assert "1 cells larger than the overlap of tiles were joined" in caplog.text
    assert "end at the border" not in caplog.text


@pytest.mark.parametrize("shape", [(1, 1), (30, 64), (64, 64)])
def test_an_image_no_larger_than_a_tile_is_found_as_it_is(shape):
    image = cells_image(0, shape, (1, 6), 20)
    seen = []

    def find(images):
        seen.extend(images)
        return find_components(images)

    found = tiled(image, 64, 10, find)
    assert len(seen) == 1 and np.shares_memory(seen[0], image)
    assert found.pred_masks.rles == components_of(image).pred_masks.rles


def test_an_image_without_cells():
    found = tiled(np.zeros((70, 50, 3), np.uint8), 32, 8)
    assert len(found) == 0 and found.image_size == (70, 50)
    assert found.pred_boxes.tensor.shape == (0, 4) and len(found.pred_masks) == 0


def test_masks_without_a_pixel_are_left_out():
    def find(images):
        size = images[0].shape[:2]
        masks = [np.zeros(size, np.uint8), np.ones(size, np.uint8)]
        rles = [mask_util.encode(np.asfortranarray(mask)) for mask in masks]
        return [as_instances(size, rles, [0.9, 0.8], [0, 1])]

    found = tiled(np.zeros((9, 8, 3), np.uint8), 32, 8, find)
    assert found.pred_classes.tolist() == [1] and found.pred_masks.area().tolist() == [72]


def test_tiles_of_one_size_come_in_batches_and_rows_as_they_are_done():
    calls = []

    def find(images):
        calls.append([image.shape[:2] for image in images])
        return find_components(images)

    parts = predict_tiled(
        find, ArrayWindows(np.zeros((150, 330, 3), np.uint8)), 64, 0, batch_size=3
    )
    next(parts)
    assert calls == [[(64, 64)] * 3, [(64, 64)] * 2, [(64, 10)]]
    assert len(list(parts)) == 2 and len(calls) == 9


def test_cells_come_out_with_the_row_of_tiles_that_settles_them():
    image = np.zeros((160, 40, 3), np.uint8)
    grid = make_grid((160, 40), 64, 32)
    assert grid.rows.starts.tolist() == [0, 32, 64, 96]
    for y in (10, 40, 60, 150):
        paint(image, disc(image.shape[:2], y, 20, 6), y)
    parts = list(predict_tiled(find_components, ArrayWindows(image), 64, 32))
    # A cell is settled when the next row of tiles begins below it.
    assert [part.pred_classes.tolist() for part in parts] == [[10], [40], [60], [150]]


@pytest.mark.slow
def test_a_network_finds_the_same_cells_away_from_borders(repository):
    cfg = get_cfg()
    add_cellseg_config(cfg)
    cfg.merge_from_file(str(repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [96], [128]]
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.24
    # No limit by number, which whole image and tiles would reach at different scores.
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 100_000
    cfg.TEST.DETECTIONS_PER_IMAGE = 100_000
    torch.manual_seed(0)
    model = build_model(cfg).eval()

    def find(images):
        tensors = [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images]
        with torch.no_grad():
            return [model([{"image": tensor}])[0]["instances"] for tensor in tensors]

    image, _ = make_image(np.random.default_rng(1), (96, 544), 25)
    assert make_grid((96, 544), 384, 160).columns.ends.tolist() == [352, 544]
    found = tiled(image, 384, 160, find)
    whole = find([image])[0]
    whole = whole[whole.pred_masks.nonempty()]
    # So far from the inner borders, at 192 and 352, the network sees nothing of them.
    center = whole.pred_boxes.get_centers()[:, 0]
    for expected in (whole[center < 150], whole[center > 450]):
        assert len(expected) > 50
        iou = mask_util.iou(expected.pred_masks.rles, found.pred_masks.rles, [0] * len(found))
        same = found[iou.argmax(axis=1)]
        assert (iou.max(axis=1) > 0.99).mean() > 0.99
        assert (same.scores - expected.scores).abs().quantile(0.99) < 1e-4


def test_what_cannot_be_tiled_is_refused_at_once():
    windows = ArrayWindows(np.zeros((40, 40, 3), np.uint8))
    for size, overlap in ((0, 0), (-5, 0), (16, 16), (16, 20), (16, -1)):
        with pytest.raises(ConfigError, match="TEST.TILE"):
            predict_tiled(find_components, windows, size, overlap)
    for options in ({"batch_size": 0}, {"min_shared": 0}, {"min_shared": 1.5}):
        with pytest.raises(ValueError, match="batch_size"):
            predict_tiled(find_components, windows, 16, 4, **options)
    windows.height, windows.width = 2**16, 2**16
    with pytest.raises(CellDataError, match="2\\^32"):
        predict_tiled(find_components, windows, 1024, 128)


def test_answers_of_another_size_or_number_are_refused():
    image = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="an answer of size"):
        tiled(image, 32, 8, lambda images: [components_of(i[:-1]) for i in images])
    with pytest.raises(ValueError, match="zip"):
        tiled(image, 32, 8, lambda images: [])
