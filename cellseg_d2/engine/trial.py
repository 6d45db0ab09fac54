"""One training step and one prediction of a tiny model, on data made for it."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from ..config import load_config
from ..data import CellDatasetMapper, load_cell_dicts
from ..data.synthetic import SyntheticParameters, write_dataset
from ..inference import CellPredictor
from .gradients import add_gradients
from .solver import build_optimizer

_FEATURES = "['res2','res3','res4','res5']"
_LEVELS = "['p2','p3','p4','p5']"
_OPTIONS = [
    *("MODEL.META_ARCHITECTURE", "CellRCNN", "MODEL.WEIGHTS", "", "MODEL.MASK_ON", "True"),
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.OUT_FEATURES", _FEATURES),
    *("MODEL.FPN.IN_FEATURES", _FEATURES, "MODEL.FPN.OUT_CHANNELS", "8"),
    *("MODEL.RPN.IN_FEATURES", _LEVELS, "MODEL.ROI_HEADS.IN_FEATURES", _LEVELS),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64]]"),
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.NUM_CLASSES", "4"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "20"),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", "1"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "7"),
    *("MODEL.ROI_MASK_HEAD.NAME", "CellMaskHead", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.RPN.POST_NMS_TOPK_TEST", "50"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
    *("INPUT.MIN_SIZE_TRAIN", "(0,)", "INPUT.MIN_SIZE_TEST", "0"),
    *("INPUT.CELL.CHANNEL_ORDER", "BGR"),
]


def trial_config() -> CfgNode:
    """Return the tiny model's config, on the GPU where there is one."""
    return load_config(options=_OPTIONS)


def train_and_predict(cfg: CfgNode) -> tuple[float, int]:
    """Make two images, train on them for one step, save the model, load it and predict.

    The weights are random from a fixed seed. The whole way of the data is taken: TIFFs, mapper,
    losses, gradients, update, checkpoint, detections, masks.

    Args:
        cfg: as from ``trial_config``.

    Returns:
        The training loss, and how many cells were predicted.

    Raises:
        ValueError: for a loss that is not finite, or weights that the step left as they were.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = SyntheticParameters(train=2, test=0, size=(96, 96), cells=(6, 9))
        write_dataset(folder / "data", data)
        dicts = load_cell_dicts(folder / "data")
        mapper = CellDatasetMapper(cfg, is_train=True)
        torch.manual_seed(0)
        model = build_model(cfg.clone()).train()
        optimizer = build_optimizer(cfg, model)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with EventStorage():
            losses = add_gradients(model, [mapper(item, k) for k, item in enumerate(dicts)], 0)
        total = float(sum(loss.item() for loss in losses.values()))
        optimizer.step()
        if not math.isfinite(total):
            raise ValueError(f"the training loss is {total}")
        if all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)):
            raise ValueError("the training step changed no weight")
        torch.save({"model": model.state_dict()}, folder / "model.pth")
        predictor = CellPredictor(cfg, [folder / "model.pth"])
        (answer,) = predictor.predict_all([dicts[0]["file_name"]])
        return total, len(answer)
