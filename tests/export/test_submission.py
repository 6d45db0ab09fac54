"""Oracles: pycocotools reads what is written, and boxes computed from the decoded masks."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from cellseg_d2.export.submission import instances_to_entries, write_submission
from cellseg_d2.export.submission_check import check_submission
from cellseg_d2.structures import RLEMasks

SIZE = (20, 30)


def masks_of(*corners: tuple[int, int, int, int]) -> list[np.ndarray]:
    masks = []
    for x0, y0, x1, y1 in corners:
        mask = np.zeros(SIZE, np.uint8)
        mask[y0:y1, x0:x1] = 1
        masks.append(mask)
    return masks


def instances_of(masks: list[np.ndarray]) -> Instances:
    count = len(masks)
    return Instances(
        SIZE,
        # The box head's boxes are looser than the masks, and are not what is submitted.
        pred_boxes=Boxes(torch.tensor([[0.0, 0.0, 30.0, 20.0]]).repeat(count, 1)),
        scores=torch.linspace(0.9, 0.1, count),
        pred_classes=torch.arange(count) % 4,
        pred_masks=RLEMasks([mask_util.encode(np.asfortranarray(m)) for m in masks], SIZE),
    )


def test_entries_hold_the_masks_and_their_tight_boxes() -> None:
    masks = masks_of((2, 3, 10, 9), (0, 0, 30, 20), (29, 19, 30, 20))
    entries = instances_to_entries(instances_of(masks), 7)
    assert [entry["bbox"] for entry in entries] == [[2, 3, 8, 6], [0, 0, 30, 20], [29, 19, 1, 1]]
    assert [entry["category_id"] for entry in entries] == [1, 2, 3]
    assert {entry["image_id"] for entry in entries} == {7}
    assert [entry["score"] for entry in entries] == pytest.approx([0.9, 0.5, 0.1])
    for entry, mask in zip(entries, masks, strict=True):
        assert entry["segmentation"]["size"] == [20, 30]
        assert isinstance(entry["segmentation"]["counts"], str)
        assert np.array_equal(mask_util.decode(entry["segmentation"]), mask)


def test_empty_masks_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    masks = masks_of((2, 3, 10, 9), (5, 5, 5, 5), (1, 1, 4, 4))
    with caplog.at_level(logging.WARNING):
        entries = instances_to_entries(instances_of(masks), 7)
    assert [entry["category_id"] for entry in entries] == [1, 3]
    assert "dropped 1 of 3" in caplog.text


def test_no_instances_give_no_entries() -> None:
    assert instances_to_entries(instances_of([]), 1) == []


def test_pycocotools_reads_the_file(tmp_path: Path) -> None:
    masks = masks_of((2, 3, 10, 9), (12, 0, 30, 20))
    json_path, _ = write_submission([instances_to_entries(instances_of(masks), 3)], tmp_path)
    truth = COCO()
    truth.dataset = {"images": [{"id": 3}], "categories": [{"id": 1}, {"id": 2}]}
    truth.createIndex()
    loaded = truth.loadRes(str(json_path)).loadAnns([1, 2])
    assert [annotation["area"] for annotation in loaded] == [48, 360]


def test_the_zip_holds_the_json_and_nothing_else(tmp_path: Path) -> None:
    entries = instances_to_entries(instances_of(masks_of((2, 3, 10, 9))), 3)
    json_path, zip_path = write_submission([entries, [], entries], tmp_path / "new" / "folder")
    with zipfile.ZipFile(zip_path) as archive:
        assert archive.namelist() == ["test-results.json"]
        assert archive.testzip() is None
        assert archive.read("test-results.json") == json_path.read_bytes()
    assert json.loads(json_path.read_text()) == entries * 2
    assert sorted(path.name for path in json_path.parent.iterdir()) == [
        "test-results.json",
        "test-results.zip",
    ]


def test_the_same_predictions_give_the_same_bytes(tmp_path: Path) -> None:
    entries = instances_to_entries(instances_of(masks_of((2, 3, 10, 9), (0, 0, 5, 5))), 3)
    first = [path.read_bytes() for path in write_submission([entries], tmp_path / "a")]
    second = [path.read_bytes() for path in write_submission([entries], tmp_path / "b")]
    assert first == second


def test_a_generator_is_written_as_it_comes(tmp_path: Path) -> None:
    alive = 0

    class Entries(list):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def images() -> Iterator[Entries]:
        nonlocal alive
        for image_id in range(1, 30):
            # The one before may still be the writer's loop variable.
            assert alive <= 1
            alive += 1
            yield Entries(instances_to_entries(instances_of(masks_of((2, 3, 10, 9))), image_id))

    json_path, _ = write_submission(images(), tmp_path)
    assert len(json.loads(json_path.read_text())) == 29


def test_no_predictions_give_an_empty_list(tmp_path: Path) -> None:
    json_path, zip_path = write_submission([], tmp_path)
    assert json.loads(json_path.read_text()) == []
    assert check_submission(zip_path).warnings == ["the file holds no predictions"]


def test_a_failure_on_the_way_leaves_the_former_files(tmp_path: Path) -> None:
    entries = instances_to_entries(instances_of(masks_of((2, 3, 10, 9))), 3)
    before = [path.read_bytes() for path in write_submission([entries], tmp_path)]

    def broken() -> Iterator[list]:
        yield entries
        raise RuntimeError("the model failed")

    with pytest.raises(RuntimeError, match="the model failed"):
        write_submission(broken(), tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_submission([[{"score": float("nan")}]], tmp_path)
    assert [(tmp_path / f"test-results.{kind}").read_bytes() for kind in ("json", "zip")] == before
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_written_passes_the_check(tmp_path: Path) -> None:
    masks = masks_of((2, 3, 10, 9), (0, 0, 30, 20), (29, 19, 30, 20), (4, 4, 4, 4))
    for path in write_submission([instances_to_entries(instances_of(masks), 5)], tmp_path):
        report = check_submission(path)
        assert not report.faults and not report.warnings
        assert (report.total, report.image_ids, report.category_ids) == (3, [5], [1, 2, 3])
        assert report.score_range == pytest.approx((0.366667, 0.9), abs=1e-5)
