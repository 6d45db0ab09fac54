"""The model without FPN: its shared head takes label maps for masks as it takes bitmaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks
from detectron2.utils.events import EventStorage

from cellseg_d2 import load_config
from cellseg_d2.data.dataset_mapper import build_instances
from cellseg_d2.modeling import CellRCNN
from cellseg_d2.structures import RLEMasks

SMALL = ["MODEL.WEIGHTS", "", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"]
SMALL += ["MODEL.RPN.POST_NMS_TOPK_TEST", "50", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"]
SMALL += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "20"]


def sample(*, bitmaps: bool) -> dict:
    labels = np.zeros((64, 80), np.int32)
    labels[5:20, 5:25] = 3
    labels[22:50, 40:70] = 8
    labels[30:44, 50:60] = 0
    instances = build_instances([labels], [1], {1: np.array([3, 8])}, (64, 80))
    if bitmaps:
        dense = torch.from_numpy(np.stack([labels == 3, labels == 8]))
        instances.gt_masks = BitMasks(dense)
    image = torch.arange(3 * 64 * 80).reshape(3, 64, 80).remainder(251).to(torch.uint8)
    return {"image": image, "instances": instances, "height": 64, "width": 80}


def test_label_maps_give_the_losses_of_bitmaps_and_answers_are_run_lengths(
    repository: Path,
) -> None:
    cfg = load_config(repository / "configs/report4_R_50_C4.yaml", SMALL)
    torch.manual_seed(0)
    model = build_model(cfg)
    assert isinstance(model, CellRCNN)
    losses = []
    for bitmaps in (False, True):
        torch.manual_seed(1)
        with EventStorage(), torch.no_grad():
            losses.append(model([sample(bitmaps=bitmaps)]))
    assert set(losses[0]) == {
        "loss_cls",
        "loss_box_reg",
        "loss_mask",
        "loss_rpn_cls",
        "loss_rpn_loc",
    }
    for name, loss in losses[0].items():
        assert torch.isfinite(loss) and torch.equal(loss, losses[1][name]), name
    assert losses[0]["loss_mask"] > 0
    with torch.no_grad():
        (answer,) = model.eval()([{"image": sample(bitmaps=False)["image"]}])
    masks = answer["instances"].pred_masks
    assert isinstance(masks, RLEMasks) and 0 < len(masks) <= 20
