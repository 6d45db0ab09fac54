"""Oracles: scikit-image's regionprops and rgb2hed of the whole image; a rectangle and a disc."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
from skimage.color import rgb2hed
from skimage.measure import regionprops

from cellseg_d2.export.cells import iter_cells
from cellseg_d2.export.measurements import columns, measure_cell, open_measurements

from .answers import discs, make_instances

NAMES = ["a", 'b, "quoted"', "c", "d"]


class Image:
    """An array, read window by window; it counts how often."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.reads = array, 0

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        self.reads += 1
        return self.array[top : top + height, left : left + width]


def image(size: tuple[int, int]) -> Image:
    return Image(np.random.default_rng(7).integers(0, 256, (*size, 3), dtype=np.uint8))


def table(path: Path, source: Image, *parts, pixel_size=None) -> list[dict[str, str]]:
    with open_measurements(path, "tile", NAMES, source, pixel_size) as writer:
        first_id = 1
        for part in parts:
            writer.add(part, first_id)
            first_id += len(part)
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("pixel_size", [None, 0.25])
def test_rows_equal_regionprops_of_the_whole_image(tmp_path: Path, pixel_size) -> None:
    size = (60, 70)
    cells, source = discs(np.random.default_rng(3), 25, size), image(size)
    rows = table(tmp_path / "a.csv", source, cells[:10], cells[10:], pixel_size=pixel_size)
    side, unit = (1, "px") if pixel_size is None else (0.25, "um")
    stains = rgb2hed(source.array)
    assert len(rows) == len(cells)
    for number, (row, mask) in enumerate(zip(rows, cells.pred_masks, strict=True)):
        mask = mask.numpy()
        (region,) = regionprops(mask.astype(np.uint8))
        expected = {
            "id": number + 1,
            "score": float(cells.scores[number]),
            "centroid_x_px": region.centroid[1] + 0.5,
            "centroid_y_px": region.centroid[0] + 0.5,
            f"centroid_x_{unit}": (region.centroid[1] + 0.5) * side,
            f"centroid_y_{unit}": (region.centroid[0] + 0.5) * side,
            f"area_{unit}2": region.area * side**2,
            f"perimeter_{unit}": region.perimeter * side,
            f"major_axis_{unit}": region.axis_major_length * side,
            f"minor_axis_{unit}": region.axis_minor_length * side,
            "eccentricity": region.eccentricity,
            "solidity": region.solidity,
            "hematoxylin_mean": stains[..., 0][mask].mean(),
            "eosin_mean": stains[..., 1][mask].mean(),
        }
        assert row.pop("image") == "tile"
        assert row.pop("class") == NAMES[cells.pred_classes[number]]
        assert {key: float(value) for key, value in row.items()} == pytest.approx(
            expected, rel=1e-6
        )


def test_a_rectangle_by_hand() -> None:
    mask = np.zeros((30, 40))
    mask[5:11, 10:22] = 1  # 6 rows, 12 columns
    (cell,) = iter_cells(make_instances([mask], [0.9], [0], (30, 40)))
    row = measure_cell(cell, np.full((6, 12, 3), 255, np.uint8))
    assert (row["centroid_x_px"], row["centroid_y_px"], row["area_px2"]) == (16, 8, 72)
    # Through the centres of the border's pixels; second moments (n² − 1) / 12 of n pixels in a row.
    assert row["perimeter_px"] == 2 * (11 + 5)
    major, minor = (4 * math.sqrt((n**2 - 1) / 12) for n in (12, 6))
    assert row["major_axis_px"] == pytest.approx(major)
    assert row["minor_axis_px"] == pytest.approx(minor)
    assert row["eccentricity"] == pytest.approx(math.sqrt(1 - (minor / major) ** 2))
    assert row["solidity"] == 1
    assert row["hematoxylin_mean"] == row["eosin_mean"] == 0  # white takes no stain


def test_a_disc_by_hand() -> None:
    y, x = np.mgrid[:81, :81] - 40
    (cell,) = iter_cells(make_instances([x**2 + y**2 <= 36**2], [0.9], [0], (81, 81)))
    row = measure_cell(cell, np.zeros((73, 73, 3), np.uint8), 0.5)
    assert (row["centroid_x_um"], row["centroid_y_um"]) == (20.25, 20.25)
    assert row["area_um2"] == pytest.approx(math.pi * 18**2, rel=0.01)
    assert row["perimeter_um"] == pytest.approx(2 * math.pi * 18, rel=0.05)  # it estimates
    assert row["major_axis_um"] == pytest.approx(36, rel=0.01)
    assert row["eccentricity"] == pytest.approx(0, abs=1e-3)
    assert row["solidity"] > 0.97


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 2)])
def test_the_smallest_cells_have_numbers(tmp_path: Path, shape: tuple[int, int]) -> None:
    mask = np.zeros((9, 9))
    mask[: shape[0], : shape[1]] = 1
    (row,) = table(tmp_path / "a.csv", image((9, 9)), make_instances([mask], [0.9], [0], (9, 9)))
    assert float(row["area_px2"]) == shape[0] * shape[1]
    assert all(value for value in row.values())


def test_a_stain_that_is_there() -> None:
    mask = np.ones((2, 2))
    (cell,) = iter_cells(make_instances([mask], [0.9], [0], (2, 2)))
    # The colours that Ruifrok and Johnston's vectors of the two stains leave of white.
    blue, pink = np.exp(-np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])) * 255
    of_blue, of_pink = (
        measure_cell(cell, np.broadcast_to(color, (2, 2, 3)).round().astype(np.uint8))
        for color in (blue, pink)
    )
    assert of_blue["hematoxylin_mean"] > 20 * of_blue["eosin_mean"]
    assert of_pink["eosin_mean"] > 20 * of_pink["hematoxylin_mean"]


def test_neighbours_are_read_together(tmp_path: Path) -> None:
    size = (100, 1200)
    masks = [np.zeros(size) for _ in range(30)]
    for index, mask in enumerate(masks):
        mask[10:20, 10 + 39 * index : 20 + 39 * index] = 1
    source = image(size)
    rows = table(tmp_path / "a.csv", source, make_instances(masks, [0.9] * 30, [0] * 30, size))
    assert [int(row["id"]) for row in rows] == list(range(1, 31))
    assert source.reads == 3


def test_a_name_that_is_no_utf_8_is_kept_byte_for_byte(tmp_path: Path) -> None:
    name = os.fsdecode(b"bad\xff")
    mask = np.ones((5, 5), np.uint8)
    with open_measurements(tmp_path / "a.csv", name, NAMES, image((5, 5)), None) as writer:
        writer.add(make_instances([mask], [0.9], [0], (5, 5)), 1)
    assert (tmp_path / "a.csv").read_bytes().splitlines()[1].startswith(b"bad\xff,")


def test_no_cells_give_the_header(tmp_path: Path) -> None:
    assert table(tmp_path / "a.csv", image((5, 5))) == []
    assert (tmp_path / "a.csv").read_text() == ",".join(columns(None)) + "\n"
    assert table(tmp_path / "b.csv", image((5, 5)), make_instances([], [], [], (5, 5))) == []
