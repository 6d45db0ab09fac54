"""Outlines hold a mask's pixels and no others; images are those that stand at the ends."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from PIL import Image
from skimage.draw import polygon2mask

from cellseg_d2.data import read_image
from cellseg_d2.visualization.report.matching import match_predictions
from cellseg_d2.visualization.report.pictures import (
    choose_images,
    data_uri,
    draw_picture,
    mask_path,
)
from cellseg_d2.visualization.report.sources import RunSources


def fill(path: str, size: tuple[int, int]) -> np.ndarray:
    """Fill a path as SVG does; all windings here are of one contour and its holes."""
    filled = np.zeros(size, bool)
    for ring in re.findall(r"M[^M]+z", path):
        x, y = map(int, re.match(r"M(\d+) (\d+)", ring).groups())
        corners = [(y, x)]
        for axis, step in re.findall(r"([hv])(-?\d+)", ring):
            x, y = (x + int(step), y) if axis == "h" else (x, y + int(step))
            corners.append((y, x))
        # Pixel centres, by scikit-image's test of points.
        filled ^= polygon2mask(size, np.array(corners) - 0.5)
    return filled


def case(name: str) -> np.ndarray:
    rng = np.random.default_rng(4)
    mask = np.zeros((24, 30), np.uint8)
    if name == "holes":
        mask[3:20, 4:25] = 1
        mask[6:9, 7:9] = mask[12:13, 15:20] = 0
    elif name == "parts":
        mask[2:6, 3:9] = mask[6:10, 9:14] = mask[18:24, 25:30] = 1
    elif name == "noise":
        mask[:] = rng.uniform(size=mask.shape) < 0.5
    elif name == "full":
        mask[:] = 1
    return mask


@pytest.mark.parametrize("name", ["holes", "parts", "noise", "full"])
def test_paths_hold_the_mask_exactly(name: str) -> None:
    mask = case(name)
    path = mask_path(mask_utils.encode(np.asfortranarray(mask)), mask.shape)
    assert re.fullmatch(r"(M\d+ \d+([hv]-?\d+)+z)+", path)
    np.testing.assert_array_equal(fill(path, mask.shape), mask.astype(bool))


def test_a_rectangle_has_three_edges_and_closes() -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[2:5, 3:9] = 1
    path = mask_path(mask_utils.encode(np.asfortranarray(mask)), mask.shape)
    assert len(re.findall("[hv]", path)) == 3


def test_an_empty_mask_has_no_path() -> None:
    rle = mask_utils.encode(np.zeros((5, 6), np.uint8, order="F"))
    assert mask_path(rle, (5, 6)) == ""


def with_scores(run: RunSources, scores: list[float | None]) -> RunSources:
    images = [{"image_id": i, "PQ": score} for i, score in enumerate(scores)]
    return replace(run, details={**run.details, "images": images})


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, [(2, "worst 1")]),
        (3, [(2, "worst 1"), (0, "worst 2"), (3, "best 1")]),
        (9, [(2, "worst 1"), (0, "worst 2"), (3, "best 1"), (4, "best 2")]),
    ],
)
def test_the_worst_and_the_best_are_chosen(run: RunSources, limit: int, expected: list) -> None:
    ranked = with_scores(run, [20.0, None, 10.0, 90.0, 30.0])
    assert [(row["image_id"], rank) for row, rank in choose_images(ranked, limit)] == expected


def test_images_without_cells_are_better_than_none(run: RunSources) -> None:
    assert len(choose_images(with_scores(run, [None, None]), 6)) == 2
    assert choose_images(with_scores(run, []), 6) == []


def test_a_picture_shows_the_image_and_all_its_cells(run: RunSources) -> None:
    row = run.details["images"][0]
    item = run.dicts[row["image_id"]]
    predictions = run.predictions[row["image_id"]]
    size = (item["height"], item["width"])
    matches = match_predictions(item["annotations"], predictions, size)
    picture = draw_picture(run, row, "worst 1", predictions, matches)
    assert (picture.height, picture.width) == size

    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.source.split(",")[1]))))
    original = read_image(item["file_name"], "BGR")
    assert decoded.shape == original.shape
    assert np.abs(decoded.astype(int) - original).mean() < 4

    assert len(picture.truth) == len(item["annotations"])
    scores = [cell.score for cell in picture.predicted]
    assert scores == sorted(p["score"] for p in predictions)
    assert sum(cell.found for cell in picture.predicted) == (matches >= 0).sum()
    # A cell of the ground truth is found at the score of the prediction that finds it.
    found = sorted(cell.score for cell in picture.truth if cell.found)
    assert found == sorted(cell.score for cell in picture.predicted if cell.found)
    for cell, annotation in zip(picture.truth, item["annotations"], strict=True):
        mask = mask_utils.decode(annotation["segmentation"]).astype(bool)
        np.testing.assert_array_equal(fill(cell.path, size), mask)


def test_large_images_are_made_smaller() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1200, 2400, 3), np.uint8)
    uri = data_uri(noise)
    picture = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
    assert picture.size == (1000, 500)
