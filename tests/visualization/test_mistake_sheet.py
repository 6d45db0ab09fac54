"""Which mistakes are shown, and where the pieces are cut."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.structures import BoxMode

from cellseg_d2.evaluation.mistakes import FATES, FOUND, MERGED, MISSED, Cells
from cellseg_d2.visualization import mistake_sheet
from cellseg_d2.visualization.mistake_sheet import choose_mistakes, draw_mistakes
from cellseg_d2.visualization.overlay import cell_metadata, draw_ground_truth


def cells(fate, *, image=None, diameter=None, score=None, category=None, partner=None, iou=None):
    n = len(fate)

    def column(values, fill):
        return np.array(values) if values is not None else np.full(n, fill)

    center = np.stack([np.arange(n) * 100.0, np.arange(n) * 100.0], axis=1)
    zeros = np.zeros(n)
    return Cells(
        column(image, 0),
        column(category, 0),
        center,
        column(diameter, 1.0),
        zeros,
        zeros,
        column(partner, -1),
        column(iou, 0.0),
        np.array(fate),
        column(score, np.nan),
    )


NOTHING = cells([])


def test_the_largest_of_each_image_come_first() -> None:
    gt = cells([MISSED] * 5 + [FOUND], image=[0, 0, 1, 1, 2, 2], diameter=[9, 8, 3, 2, 7, 99])
    chosen = choose_mistakes(gt, NOTHING, ["a"], ["x", "y", "z"], each=4)
    assert [(m.image, m.center[0]) for m in chosen] == [(0, 0), (2, 400), (1, 200), (0, 100)]
    assert {m.title for m in chosen} == {"missed: a"}


def test_a_place_is_shown_once() -> None:
    # Two runs of image x, which miss one cell and merge the next; and the same place of image y.
    gt = cells([MISSED, MISSED, MERGED, MISSED], image=[0, 1, 1, 2], diameter=[9, 8, 99, 7])
    gt.center[:] = [(50, 50), (51, 50), (97, 3), (50, 50)]
    chosen = choose_mistakes(gt, NOTHING, ["a"], ["x", "x", "y"])
    assert [(m.title, m.image) for m in chosen] == [("merged: a", 1), ("missed: a", 2)]
    # A piece is 96 pixels wide; at the border it goes that far from its place.
    gt.center[2] = (145, 50)
    assert choose_mistakes(gt, NOTHING, ["a"], ["x", "x", "y"])[1].image == 2
    gt.center[2] = (147, 50)
    chosen = choose_mistakes(gt, NOTHING, ["a"], ["x", "x", "y"])
    assert [(m.title, m.image) for m in chosen] == [
        ("merged: a", 1),
        ("missed: a", 0),
        ("missed: a", 2),
    ]


def test_the_surest_wrong_names_and_spurious_cells() -> None:
    pred = cells(
        [FOUND, FOUND, FOUND, MISSED, MISSED],
        category=[0, 1, 1, 0, 1],
        partner=[0, 0, 0, -1, -1],
        iou=[0.9, 0.8, 0.7, 0.0, 0.3],
        score=[0.99, 0.5, 0.75, 0.6, 0.95],
    )
    chosen = choose_mistakes(cells([MERGED]), pred, ["a", "b"], ["x"], each=1)
    # The last prediction touches a cell by .3: that is the misdrawn cell's mistake.
    assert [m.title for m in chosen] == [
        "merged: a",
        "a named b, score 0.75",
        "spurious: a, score 0.60",
    ]
    assert not choose_mistakes(cells([FOUND]), cells([FOUND], partner=[0]), ["a"], ["x"])
    assert len(FATES) == 5


def test_pieces_show_the_place_and_its_masks() -> None:
    image = np.full((200, 300, 3), 255, np.uint8)
    image[140:150, 240:250] = (0, 0, 255)
    mask = np.zeros((200, 300), np.uint8)
    mask[140:150, 240:250] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    truth = {5: [{"category_id": 0, "segmentation": rle}]}
    names = [""] * 5 + ["x"]
    chosen = choose_mistakes(cells([MISSED], image=[5]), NOTHING, ["a"], names)
    sheet = draw_mistakes(chosen, {5: ("x", image)}, truth, {5: []}, ["a"])
    # At the origin: nothing but white in all three pieces.
    assert not (sheet == (0, 0, 255)).all(axis=2).any()
    gt = cells([MISSED], image=[5])
    gt.center[:] = (245, 145)
    drawn = draw_mistakes(
        choose_mistakes(gt, NOTHING, ["a"], names), {5: ("x", image)}, truth, {5: []}, ["a"]
    )
    blue = (drawn[..., 0] < 10) & (drawn[..., 2] > 245)
    columns = [blue[:, :270].sum(), blue[:, 270:540].sum(), blue[:, 540:].sum()]
    # 10 of 96 pixels, at 260 of them: the image and the prediction, and the mask in between.
    assert all(abs(np.sqrt(n) - 10 * 260 / 96) < 3 for n in (columns[0], columns[2]))
    # Its colour lies over the ground truth's.
    assert columns[1] == 0


@pytest.mark.parametrize("center", [(0, 0), (140, 60), (150, 199), (299, 120)])
def test_pieces_are_those_of_the_whole_picture(center: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (200, 300, 3), np.uint8)
    items = []
    for _ in range(150):
        mask = np.zeros((200, 300), np.uint8)
        top, left = rng.integers(0, 190), rng.integers(0, 290)
        mask[top : top + rng.integers(3, 60), left : left + rng.integers(3, 60)] = 1
        rle = mask_util.encode(np.asfortranarray(mask))
        items.append({"category_id": int(rng.integers(2)), "segmentation": rle})
    window = mistake_sheet._window(*center, 200, 300)
    metadata = cell_metadata(["a", "b"])
    piece = mistake_sheet._draw(image, items, window, metadata)
    boxes = [mask_util.toBbox(item["segmentation"]).tolist() for item in items]
    record = {
        "annotations": [
            {**item, "bbox": box, "bbox_mode": BoxMode.XYWH_ABS}
            for item, box in zip(items, boxes, strict=True)
        ]
    }
    whole = draw_ground_truth(image, record, metadata, mistake_sheet._STYLE, legend=False)
    rows, columns = (slice(4 * part.start, 4 * part.stop) for part in window)
    np.testing.assert_array_equal(piece, whole[rows, columns])
