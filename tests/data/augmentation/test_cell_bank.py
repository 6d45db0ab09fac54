"""What is cut out of which images: against the files' own pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg_d2.data import load_cell_dicts
from cellseg_d2.data.augmentation.cell_bank import CellBank, build_cell_bank, cut_out


def write(folder: Path, number: int, boxes: list[tuple[int, int, int, int]], seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "image.tif").exists():
        image = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8)
        tifffile.imwrite(folder / "image.tif", image)
    labels = np.zeros((30, 40), np.uint16)
    for i, (y0, x0, y1, x1) in enumerate(boxes, start=5):
        labels[y0:y1, x0:x1] = i
    tifffile.imwrite(folder / f"class{number}.tif", labels)


@pytest.fixture
def dicts(tmp_path: Path) -> list[dict]:
    write(tmp_path / "a", 1, [(2, 2, 6, 9), (0, 20, 4, 24)], seed=1)  # the second at the border
    write(tmp_path / "a", 3, [(10, 10, 14, 12), (20, 30, 21, 31)], seed=1)
    write(tmp_path / "b", 3, [(12, 3, 15, 9)], seed=2)
    write(tmp_path / "c", 4, [(0, 0, 5, 5)], seed=3)
    return load_cell_dicts(tmp_path)


def test_cells_are_the_files_own_pixels(dicts: list[dict]) -> None:
    bank = build_cell_bank(dicts, [0, 2])
    assert {c: len(cells) for c, cells in bank.cells.items()} == {0: 1, 2: 3}
    (cell,) = bank.cells[0]
    image = tifffile.imread(dicts[0]["file_name"])
    assert np.array_equal(cell.image, image[1:7, 1:10])
    labels = tifffile.imread(dicts[0]["label_file_names"][0])
    assert np.array_equal(cell.mask, labels[1:7, 1:10] > 0)
    assert cell.image.base is None, "the whole image stays in memory"
    assert sorted(cell.mask.sum() for cell in bank.cells[2]) == [1, 8, 18]
    assert repr(bank) == "CellBank(0: 1, 2: 3)"


def test_colours_are_read_as_the_mapper_reads_them(dicts: list[dict]) -> None:
    rgb, bgr = (build_cell_bank(dicts, [0], channel_order=o).cells[0][0] for o in ("RGB", "BGR"))
    assert np.array_equal(rgb.image, bgr.image[:, :, ::-1])


def test_only_images_with_a_drawn_cell_are_read(dicts: list[dict]) -> None:
    Path(dicts[2]["file_name"]).unlink()
    assert len(build_cell_bank(dicts, [2]).cells[2]) == 3


def test_the_number_of_cells_is_bounded_and_drawn_by_seed(tmp_path: Path) -> None:
    boxes = [(y, x, y + 2, x + 2) for y in range(2, 26, 4) for x in range(2, 36, 4)]
    for k in range(3):
        write(tmp_path / str(k), 2, boxes, seed=k)
    dicts = load_cell_dicts(tmp_path)

    def drawn(seed: int) -> list[bytes]:
        cells = build_cell_bank(dicts, [1], seed=seed, cells_per_class=20).cells[1]
        return [cell.image.tobytes() for cell in cells]

    assert len(drawn(0)) == len(set(drawn(0))) == 20
    assert drawn(0) == drawn(0) != drawn(1)


def test_classes_without_cells_are_named(dicts: list[dict], caplog) -> None:
    assert build_cell_bank(dicts, [1, 3]).cells == {}
    assert "[1, 3]" in caplog.text


def test_components_are_cut_out_by_the_rule(tmp_path: Path) -> None:
    write(tmp_path / "a", 2, [(2, 2, 6, 6)], seed=0)
    labels = np.zeros((30, 40), np.uint16)
    labels[2:6, 2:6] = labels[10:13, 10:13] = 7
    tifffile.imwrite(tmp_path / "a" / "class2.tif", labels)
    by_component = build_cell_bank(load_cell_dicts(tmp_path, instances="components"), [1])
    assert sorted(cell.mask.sum() for cell in by_component.cells[1]) == [9, 16]
    by_id = build_cell_bank(load_cell_dicts(tmp_path), [1])
    assert [cell.mask.sum() for cell in by_id.cells[1]] == [25]


def test_cells_near_any_border_are_left_out() -> None:
    labels = np.zeros((12, 12), np.int32)
    labels[0, 4:7], labels[11, 4:7], labels[4:7, 0], labels[4:7, 11], labels[1:11, 5] = (
        1,
        2,
        3,
        4,
        5,
    )
    (cell,) = cut_out(np.zeros((12, 12, 3), np.uint8), labels, np.arange(1, 6))
    assert cell.mask.shape == (12, 3) and cell.mask.sum() == 10


def test_a_bank_lists_no_empty_class() -> None:
    assert CellBank({1: [], 2: []}).cells == {}
