"""Links of boxes in two tiles, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from cellseg_d2.inference.detections import Detections
from cellseg_d2.inference.seam_links import find_links
from cellseg_d2.inference.tile_grid import TileGrid, make_grid
from cellseg_d2.structures import RLEMasks, encode_label_map


def seen(grid: TileGrid, column: int, *boxes: tuple[int, int, int, int]) -> Detections:
    """Boxes that a tile sees, XYXY in the image; they may overlap."""
    tile = grid.tile(0, column)
    rles = []
    for x0, y0, x1, y1 in boxes:
        label_map = np.zeros((tile.height, tile.width), np.int32)
        label_map[y0:y1, max(x0 - tile.left, 0) : x1 - tile.left] = 1
        rles += encode_label_map(label_map).rles()
    masks = RLEMasks(rles, (tile.height, tile.width))
    found = Instances(
        masks.image_size,
        pred_boxes=masks.get_bounding_boxes() if rles else Boxes(torch.zeros(0, 4)),
        scores=torch.ones(len(masks)),
        pred_classes=torch.zeros(len(masks), dtype=torch.int64),
        pred_masks=masks,
    )
    return Detections.from_instances(found, tile, grid)


def links(grid: TileGrid, left: Detections, right: Detections, min_shared: float = 0.5):
    found = find_links(Detections.cat([left, right]), len(left), grid, min_shared)
    return list(zip(found.first.tolist(), found.second.tolist(), found.strengths, strict=True))


@pytest.fixture
def grid() -> TileGrid:
    """Columns 0 to 63 and 32 to 95."""
    return make_grid((64, 96), 64, 32)


def test_detections_in_the_image(grid: TileGrid) -> None:
    found = seen(grid, 1, (36, 5, 50, 20), (30, 30, 40, 40), (60, 60, 96, 64))
    assert found.boxes.tolist() == [[36, 5, 50, 20], [32, 30, 40, 40], [60, 60, 96, 64]]
    assert found.pred_boxes.tolist() == found.boxes.tolist()
    assert found.depths.tolist() == [4, 0, 28]
    assert found.whole.tolist() == [True, False, True]
    # Centred at 43, 36 and 78; the cores meet at 48.
    assert found.responsible.tolist() == [False, False, True]
    assert found.tiles.tolist() == [1, 1, 1]
    joined = found.to_instances([[2], [0, 1]])
    assert joined.pred_boxes.tensor.tolist() == [[60, 60, 96, 64], [32, 5, 50, 40]]
    assert joined.pred_masks.area().tolist() == [36 * 4, 14 * 15 + 80]
    assert len(found.to_instances([])) == 0


def test_whole_cells_share_most_of_the_smaller_one(grid: TileGrid) -> None:
    left = seen(grid, 0, (40, 5, 50, 15))
    assert links(grid, left, seen(grid, 1, (40, 5, 50, 15))) == [(0, 1, 1.0)]
    # 50 of the smaller one's 100 pixels, of 150 in both; of 105 at 45 pixels too few.
    assert links(grid, left, seen(grid, 1, (45, 5, 55, 15))) == [(0, 1, pytest.approx(1 / 3))]
    assert links(grid, left, seen(grid, 1, (46, 5, 56, 15))) == []
    assert links(grid, left, seen(grid, 1, (42, 7, 46, 11))) == [(0, 1, pytest.approx(0.16))]


def test_a_cut_cell_lies_in_the_whole_one(grid: TileGrid) -> None:
    left = seen(grid, 0, (20, 5, 44, 15))
    # The whole one comes first, whatever the order of the tiles.
    assert links(grid, left, seen(grid, 1, (32, 5, 44, 15))) == [(0, 1, 1.0)]
    assert links(grid, left, seen(grid, 1, (32, 5, 48, 15))) == [(0, 1, pytest.approx(0.75))]
    assert links(grid, left, seen(grid, 1, (32, 5, 60, 15))) == []
    cut = seen(grid, 0, (44, 5, 64, 15))
    assert links(grid, cut, seen(grid, 1, (44, 5, 74, 15))) == [(1, 0, 1.0)]


def test_cut_cells_agree_where_both_tiles_look(grid: TileGrid) -> None:
    # The right one has 12 of its 22 columns, and all of those that the left tile sees, in common.
    left = seen(grid, 0, (4, 5, 64, 15))
    assert links(grid, left, seen(grid, 1, (32, 5, 90, 15))) == [(0, 1, 1.0)]
    assert links(grid, left, seen(grid, 1, (32, 12, 90, 20))) == []
    assert links(grid, left, seen(grid, 1, (32, 9, 90, 19))) == [(0, 1, pytest.approx(0.6))]
    assert links(grid, left, seen(grid, 1, (32, 12, 90, 20)), 0.3) == [(0, 1, pytest.approx(3 / 8))]


def test_cut_cells_meet_across_a_border_without_overlap() -> None:
    grid = make_grid((64, 128), 64, 0)
    left = seen(grid, 0, (40, 5, 64, 15), (50, 20, 61, 30))
    right = seen(grid, 1, (64, 7, 80, 17), (64, 20, 80, 30), (64, 15, 70, 20))
    assert links(grid, left, right) == [(0, 2, pytest.approx(0.8))]


def test_nothing_to_compare(grid: TileGrid) -> None:
    nothing, cell = seen(grid, 0), seen(grid, 1, (40, 5, 50, 15))
    assert links(grid, nothing, cell) == links(grid, nothing, seen(grid, 1)) == []
    known = Detections.cat([seen(grid, 0, (40, 5, 50, 15)), cell])
    assert len(find_links(known, 2, grid, 0.5)) == 0
