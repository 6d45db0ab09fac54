"""Oracle: what was written, read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Boxes, Instances

from cellseg_d2.errors import CellDataError
from cellseg_d2.export.image_index import IndexedImage
from cellseg_d2.export.submission import instances_to_entries, write_submission
from cellseg_d2.export.submission_reader import read_submission
from cellseg_d2.structures import RLEMasks

SIZE = (20, 30)
IMAGES = {k: IndexedImage(k, f"image{k}", SIZE, None) for k in (1, 2)}


@pytest.fixture
def written() -> Instances:
    masks = np.zeros((2, *SIZE), np.uint8)
    masks[0, 3:9, 2:10] = 1
    masks[1, 0:20, 12:30] = 1
    return Instances(
        SIZE,
        pred_boxes=Boxes(torch.tensor([[2.0, 3.0, 10.0, 9.0], [12.0, 0.0, 30.0, 20.0]])),
        scores=torch.tensor([0.9, 0.25]),
        pred_classes=torch.tensor([3, 0]),
        pred_masks=RLEMasks([mask_util.encode(np.asfortranarray(mask)) for mask in masks], SIZE),
    )


def test_predictions_come_back(tmp_path: Path, written: Instances) -> None:
    paths = write_submission([instances_to_entries(written, 2)], tmp_path)
    for path in paths:
        instances, faulty = read_submission(path, IMAGES, 4)
        assert faulty == 0 and len(instances[1]) == 0
        assert torch.equal(instances[2].pred_boxes.tensor, written.pred_boxes.tensor)
        assert torch.equal(instances[2].scores, written.scores)
        assert torch.equal(instances[2].pred_classes, written.pred_classes)
        assert instances[2].pred_masks.rles == written.pred_masks.rles


def test_low_scores_and_faulty_predictions_are_left_out(tmp_path: Path, written: Instances) -> None:
    entries = instances_to_entries(written, 1)
    unknown_image = instances_to_entries(written, 9)
    path, _ = write_submission([entries, unknown_image], tmp_path)
    instances, faulty = read_submission(path, IMAGES, 4, score_threshold=0.5)
    assert faulty == 2
    assert instances[1].scores.tolist() == pytest.approx([0.9])


def test_a_file_that_is_no_submission_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    path.write_text("{}")
    with pytest.raises(CellDataError, match="an object, not a list"):
        read_submission(path, IMAGES, 4)
