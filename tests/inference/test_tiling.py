"""Oracle: the finder itself on the whole image, from which its answer for tiles must not differ."""

from __future__ import annotations

import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from cellseg_d2 import add_cellseg_config
from cellseg_d2.data.synthetic import make_image
from cellseg_d2.data.tiff_window import ArrayWindows
from cellseg_d2.errors import CellDataError, ConfigError
from cellseg_d2.inference.tile_grid import make_grid
from cellseg_d2.inference.tiling import predict_tiled
from cellseg_d2.structures import RLEMasks, encode_label_map


def find_components(images: list[np.ndarray]) -> list[Instances]:
    """Connected regions of red; class and score are those that green and blue say somewhere in it.

    The answer for a region depends on nothing else.
    """
    return [components_of(image) for image in images]


def components_of(image: np.ndarray) -> Instances:
    labels = ndimage.label(image[:, :, 0] > 0)[0].astype(np.int32)
    found = encode_label_map(labels)
    index = found.ids.tolist()
    classes = ndimage.maximum(image[:, :, 1], labels, index) if index else []
    scores = ndimage.maximum(image[:, :, 2], labels, index) if index else []
    return as_instances(labels.shape, found.rles(), np.array(scores) / 255, classes)


def as_instances(size, rles, scores, classes) -> Instances:
    scores = torch.tensor(np.asarray(scores), dtype=torch.float32)
    order = torch.argsort(-scores, stable=True)
    masks = RLEMasks(rles, size)[order]
    return Instances(
        tuple(size),
        pred_boxes=masks.get_bounding_boxes() if len(masks) else Boxes(torch.zeros(0, 4)),
        scores=scores[order],
        pred_classes=torch.tensor(np.asarray(classes), dtype=torch.int64)[order],
        pred_masks=masks,
    )


def tiled(image: np.ndarray, size: int, overlap: int, find=find_components, **options) -> Instances:
    parts = list(predict_tiled(find, ArrayWindows(image), size, overlap, **options))
    assert len(parts) == make_grid(image.shape[:2], size, overlap).num_rows
    for part in parts:
        assert part.image_size == image.shape[:2]
        assert (part.scores[1:] <= part.scores[:-1]).all()
    return Instances.cat(parts)


def contents(instances: Instances) -> list[tuple]:
    return sorted(
        (rle["counts"], *map(float, box), round(float(score), 6), int(category))
        for rle, box, score, category in zip(
            instances.pred_masks.rles,
            instances.pred_boxes.tensor,
            instances.scores,
            instances.pred_classes,
            strict=True,
        )
    )


def paint(image: np.ndarray, mask: np.ndarray, category: int = 0, score: int = 255) -> None:
    image[mask] = (255, category, score)


def disc(shape: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def cells_image(
    seed: int,
    shape: tuple[int, int],
    radii: tuple[float, float],
    count: int,
    hollow: float = 0,
    gap: float = 2,
) -> np.ndarray:
    """Discs, and beyond a radius rings, that do not touch, each of one class and score."""
    rng = np.random.default_rng(seed)
    image = np.zeros((*shape, 3), np.uint8)
    for _ in range(count):
        y, x = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        radius = rng.uniform(*radii)
        if image[disc(shape, y, x, radius + gap)].any():
            continue
        mask = disc(shape, y, x, radius)
        if radius > hollow and rng.random() < 0.3:
            mask &= ~disc(shape, y, x, radius / 2)
        paint(image, mask, rng.integers(4), rng.integers(1, 256))
    return image


# ------------------------------------------------------------- the cells of the whole image


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


# ------------------------------------------------------------ neighbours that do not agree


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
    assert len(two_tiles([(50, 5, 64, 15, 0.5, 0)], [])) == 0
    assert not caplog.text


# ----------------------------------------------------------------------------------- a network


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


# ------------------------------------------------------------------------------- arguments


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
