"""What becomes of cells: squares worked out by hand, and random discs counted one by one."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest

from cellseg_d2.evaluation.image_result import compare_image
from cellseg_d2.evaluation.mistakes import (
    FATES,
    FOUND,
    Cells,
    describe_cells,
    quartile_edges,
    tabulate_strata,
)

from .label_maps import discs_and_guesses

SIZE = (120, 160)


def box(top: int, left: int, height: int = 10, width: int = 10) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def case(truth, answers):
    """A record and predictions of (mask, class) and (mask, class, score)."""
    size = truth[0][0].shape if truth else SIZE

    def encode(mask):
        return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))

    annotations = [{"category_id": k, "segmentation": encode(mask)} for mask, k in truth]
    record = {"image_id": 4, "height": size[0], "width": size[1], "annotations": annotations}
    predictions = [
        {"category_id": k, "segmentation": encode(mask), "score": score}
        for mask, k, score in answers
    ]
    return record, predictions


BLACK = np.zeros((*SIZE, 3), np.uint8)


def test_each_fate_worked_out_by_hand() -> None:
    truth = [
        (box(0, 0), 0),  # found, and named wrongly
        (box(0, 40), 1),  # these two are under one prediction
        (box(0, 50), 1),
        (box(40, 0), 0),  # two halves, neither with an IoU above .5
        (box(40, 40), 0),  # a quarter of it, IoU .25
        (box(40, 80), 0),  # an eighth of it
        (box(80, 0), 0),  # nothing
    ]
    answers = [
        (box(0, 0), 1, 0.9),
        (box(0, 40, width=20), 1, 0.8),
        (box(40, 0, width=5), 0, 0.7),
        (box(40, 5, width=5), 0, 0.6),
        (box(40, 40, height=5, width=5), 0, 0.9),
        (box(40, 80, height=5, width=2), 0, 0.9),
        (box(80, 80), 1, 0.9),
        (box(80, 0), 0, 0.4),  # below the threshold
    ]
    gt, pred = describe_cells(*case(truth, answers), BLACK, 0.5)
    by_place = {tuple(c): FATES[f] for c, f in zip(gt.center.tolist(), gt.fate, strict=True)}
    assert by_place == {
        (4.5, 4.5): "found",
        (44.5, 4.5): "merged",
        (54.5, 4.5): "merged",
        (4.5, 44.5): "split",
        (44.5, 44.5): "misdrawn",
        (84.5, 44.5): "missed",
        (4.5, 84.5): "missed",
    }
    assert pred.center[pred.fate == FOUND].tolist() == [[4.5, 4.5]]
    assert (pred.category[pred.fate == FOUND], pred.partner[pred.fate == FOUND]) == (1, 0)
    assert len(pred) == 7 and pred.score.min() == 0.6
    assert np.isnan(gt.score).all() and set(gt.image) == {4}
    merged = gt.iou[gt.fate == FATES.index("merged")]
    # Half of what covers both; of IoU .5 and not above.
    assert merged.tolist() == [0.5, 0.5]
    assert np.allclose(gt.diameter, 2 * np.sqrt(100 / np.pi))


def test_a_cell_covered_with_another_is_found_where_its_overlap_is_enough() -> None:
    truth = [(box(0, 0, 10, 20), 0), (box(0, 20, 10, 5), 0)]
    gt, pred = describe_cells(*case(truth, [(box(0, 0, 10, 25), 0, 0.9)]), BLACK, 0.5)
    assert [FATES[f] for f in gt.fate] == ["found", "merged"]
    assert gt.iou.tolist() == [0.8, 0.2] and pred.iou.tolist() == [0.8]


def test_neighbours_and_stain() -> None:
    image = BLACK.copy()
    image[0:10, 0:10] = 255
    image[0:10, 40:50] = (99, 9, 255)
    truth = [(box(0, 0), 0), (box(0, 40), 0), (box(0, 95), 0)]
    gt, pred = describe_cells(*case(truth, []), image, 0.5)
    # Centres at 4.5, 44.5 and 99.5: the first two within 50 pixels.
    assert gt.neighbours.tolist() == [1, 1, 0]
    stained = -(np.log10(100 / 256) + np.log10(10 / 256)) / 3
    assert np.allclose(gt.density, [0, stained, -np.log10(1 / 256)])
    assert len(pred) == 0


@pytest.mark.parametrize("seed", range(3))
def test_random_discs_counted_one_by_one(seed: int) -> None:
    gt_map, pred_map = discs_and_guesses(seed)
    rng = np.random.default_rng(seed)
    truth = [(gt_map == i, int(rng.integers(3))) for i in np.unique(gt_map[gt_map > 0])]
    answers = [
        (pred_map == i, int(rng.integers(3)), float(rng.random()))
        for i in np.unique(pred_map[pred_map > 0])
    ]
    record, predictions = case(truth, answers)
    image = rng.integers(256, size=(*gt_map.shape, 3), dtype=np.uint8)
    gt, pred = describe_cells(record, predictions, image, 0.0)
    whole = compare_image(record, predictions, 3, 0.0)
    assert (gt.fate == FOUND).sum() == (pred.fate == FOUND).sum() == whole.overall.tp
    assert np.isclose(gt.iou[gt.fate == FOUND].sum(), whole.overall.iou)
    # The matrix of classes, again from the cells.
    found = gt.select(gt.fate == FOUND)
    assert all(
        whole.confusion[a, b] == ((found.category == a) & (found.partner == b)).sum()
        for a in range(3)
        for b in range(3)
    )
    expected = {}
    for mask, _ in truth:
        inside = [(mask & other).sum() for other, _, _ in answers]
        ious = [n / (mask | other).sum() for n, (other, _, _) in zip(inside, answers, strict=True)]
        merged = any(
            2 * n > mask.sum() and sum(2 * (other & t).sum() > t.sum() for t, _ in truth) > 1
            for n, (other, _, _) in zip(inside, answers, strict=True)
        )
        pieces = sum(2 * n > a[0].sum() for n, a in zip(inside, answers, strict=True))
        y, x = np.nonzero(mask)
        expected[x.mean().round(6), y.mean().round(6)] = (
            "found"
            if max(ious) > 0.5
            else (
                "merged"
                if merged
                else "split" if pieces > 1 else "misdrawn" if max(ious) >= 0.2 else "missed"
            )
        )
    found_fates = {tuple(c.round(6)): FATES[f] for c, f in zip(gt.center, gt.fate, strict=True)}
    assert found_fates == expected


def test_strata_worked_out_by_hand() -> None:
    truth = [(box(0, 0), 0), (box(0, 40), 0), (box(40, 0), 1)]
    answers = [(box(0, 0), 0, 0.9), (box(40, 1), 0, 0.9), (box(80, 80), 1, 0.9)]
    gt, pred = describe_cells(*case(truth, answers), BLACK, 0.5)
    rows = tabulate_strata(gt, pred, gt.category, pred.category, 3)
    assert rows[0] == {
        "cells": 2,
        "recall": 50.0,
        "precision": 100.0,
        "IoU": 100.0,
        "named": 100.0,
        "merged": 0.0,
        "split": 0.0,
        "misdrawn": 0.0,
        "missed": 50.0,
    }
    assert rows[1]["recall"] == 100 and rows[1]["named"] == 0 and rows[1]["precision"] == 0
    assert np.isclose(rows[1]["IoU"], 100 * 90 / 110)
    assert rows[2]["cells"] == 0 and np.isnan(rows[2]["recall"])
    both = Cells.cat([gt, gt])
    assert len(both) == 6 and both.category.tolist() == 2 * gt.category.tolist()


def test_quarters() -> None:
    assert quartile_edges(np.arange(101)).tolist() == [25, 50, 75]
    # Small values too, such as optical densities of pale tissue.
    assert quartile_edges(np.linspace(0.001, 0.004, 101)).tolist() == [0.00175, 0.0025, 0.00325]


@pytest.mark.parametrize(
    ("values", "edges"),
    [
        ([3, 3, 3, 3, 9], []),
        ([0, 0, 0, 4, 5, 6], [2, 4.75]),
        ([7], []),
        # Rounded below all values, and above.
        ([12344, 12344], []),
        ([12366, 12366], []),
    ],
)
def test_no_group_is_empty_where_cells_are_alike(values: list[float], edges: list[float]) -> None:
    found = quartile_edges(np.array(values))
    assert found.tolist() == edges
    groups = np.digitize(values, found)
    assert set(groups) == set(range(len(edges) + 1))
