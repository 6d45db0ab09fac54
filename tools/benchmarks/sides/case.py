"""The files that all sides of a case read: images, dicts, configs, and the same weights."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torchvision.models.detection import MaskRCNN

from cellseg_d2 import load_config
from cellseg_d2.checkpoint.convert import convert_weights
from cellseg_d2.data import load_cell_dicts
from cellseg_d2.data.synthetic import make_image, make_label_map
from cellseg_d2.engine.train_step import mix_seed

from .vision import build_detector

CONFIGS = Path(__file__).parents[3] / "configs"
NUM_CLASSES = 4
STEPS = 100
"""Iterations that seeds are written for."""

SMALL, LARGE = 18, 50
# Depth of the ResNet: the config, and what it takes to be torchvision's model without weights.
_MODELS: dict[int, tuple[str, list[Any]]] = {
    SMALL: ("mask_rcnn_R_18_FPN_small.yaml", []),
    LARGE: (
        "report1_R_50_FPN_sgd.yaml",
        [
            *("MODEL.WEIGHTS", "", "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]]),
            *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 500, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 500),
            *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 128),
        ],
    ),
}


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        depth: of the ResNet, ``SMALL`` or ``LARGE``.
        cells: an image, in the ground truth and as found.
        side: of the images in pixels.
        images: a batch.
        rounds: of which the medians are taken.
    """

    depth: int
    cells: int
    side: int
    images: int
    rounds: int


def write(case: Case, folder: Path) -> None:
    """Write a case.

    The cells of an image are in equal shares of each class. The weights are drawn at random; all
    sides have the same ones, with the statistics of norms that the images give.
    """
    torch.manual_seed(0)
    write_images(folder / "data", case.images, case.cells, case.side)
    records = load_cell_dicts(folder / "data", num_classes=NUM_CLASSES)
    (folder / "records.pkl").write_bytes(pickle.dumps(records))
    torch.save(_proposals(records[0]), folder / "proposals.pt")
    np.save(folder / "seeds.npy", [mix_seed(0, number, 0) for number in range(STEPS)])

    cfg = model_config(case.depth, case.cells)
    (folder / "ours.yaml").write_text(cfg.dump())
    stock = _known_upstream(cfg, get_cfg())
    stock.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    stock.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    stock.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    (folder / "stock.yaml").write_text(stock.dump())

    arguments: dict[str, Any] = {
        "depth": case.depth,
        "arguments": _vision_arguments(cfg, case.side),
    }
    (folder / "vision.json").write_text(json.dumps(arguments))
    detector = build_detector(**arguments)
    _settle_norms(detector, records, cfg)
    torch.save(detector.state_dict(), folder / "vision.pth")
    converted = convert_weights(detector.state_dict(), "detector").weights
    model = build_model(cfg)
    unmatched = model.load_state_dict(
        {name: torch.from_numpy(array) for name, array in converted.items()}, strict=False
    )
    left = [name for name in unmatched.missing_keys if not name.endswith("num_batches_tracked")]
    if left or unmatched.unexpected_keys:
        raise AssertionError(f"not one model: {left}, {unmatched.unexpected_keys}")
    torch.save({"model": model.state_dict()}, folder / "detectron2.pth")


def write_images(
    root: Path, images: int, cells: int, side: int, num_classes: int = NUM_CLASSES
) -> None:
    """Write annotated images of ``side`` pixels in the released data's layout, below ``train``."""
    for index in range(images):
        folder = root / "train" / f"image{index:03}"
        folder.mkdir(parents=True)
        image, _ = make_image(np.random.default_rng(index), (side, side), 50)
        tifffile.imwrite(folder / "image.tif", image, photometric="rgb", compression="lzw")
        labels = make_label_map(np.random.default_rng(index), (side, side), cells)
        for category in range(num_classes):
            mine = labels * ((labels > 0) & (labels % num_classes == category))
            tifffile.imwrite(folder / f"class{category + 1}.tif", mine.astype(np.float64))


def model_config(depth: int, cells: int, **options: Any) -> CfgNode:
    """Return the config of a model that finds ``cells`` cells an image, whatever their scores."""
    name, changes = _MODELS[depth]
    settings: list[Any] = [
        *("MODEL.DEVICE", "cpu", "INPUT.FORMAT", "RGB", "INPUT.CELL.CHANNEL_ORDER", "RGB"),
        *("MODEL.PIXEL_MEAN", [128.0] * 3, "MODEL.PIXEL_STD", [64.0] * 3),
        *("INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.MIN_SIZE_TEST", 0, "INPUT.CROP.ENABLED", False),
        *("INPUT.CELL.RECIPE", "none", "DATASETS.CELL.INSTANCES", "ids"),
        *("SOLVER.AMP.ENABLED", False, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
        *("TEST.DETECTIONS_PER_IMAGE", cells),
        *changes,
        *(item for option in options.items() for item in option),
    ]
    return load_config(CONFIGS / name, settings)


def _vision_arguments(cfg: CfgNode, side: int) -> dict[str, Any]:
    return {
        "sizes": cfg.MODEL.ANCHOR_GENERATOR.SIZES,
        "num_classes": NUM_CLASSES + 1,
        # Sizes stay as they are; in prediction torchvision "resizes" to the same.
        "min_size": side,
        "max_size": side,
        "image_mean": [mean / 255 for mean in cfg.MODEL.PIXEL_MEAN],
        "image_std": [std / 255 for std in cfg.MODEL.PIXEL_STD],
        "rpn_pre_nms_top_n_train": cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN,
        "rpn_pre_nms_top_n_test": cfg.MODEL.RPN.PRE_NMS_TOPK_TEST,
        "rpn_post_nms_top_n_train": cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN,
        "rpn_post_nms_top_n_test": cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        "box_batch_size_per_image": cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE,
        "box_score_thresh": 0.0,
        "box_detections_per_img": cfg.TEST.DETECTIONS_PER_IMAGE,
    }


def _known_upstream(cfg: CfgNode, defaults: CfgNode) -> CfgNode:
    """The keys that stock Detectron2 has, with our values."""
    for key, value in defaults.items():
        if isinstance(value, CfgNode):
            _known_upstream(cfg[key], value)
        else:
            defaults[key] = cfg[key]
    return defaults


def _settle_norms(detector: MaskRCNN, records: list[dict[str, Any]], cfg: CfgNode) -> None:
    """Take the norms' statistics from the images, as a training would."""
    image = torch.from_numpy(tifffile.imread(records[0]["file_name"]).transpose(2, 0, 1)).float()
    image = (image - cfg.MODEL.PIXEL_MEAN[0]) / cfg.MODEL.PIXEL_STD[0]
    norms = [m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean of all
    detector.backbone.train()
    with torch.no_grad():
        detector.backbone(image[None])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _proposals(record: dict[str, Any]) -> torch.Tensor:
    """500 boxes as an RPN finds them: around cells, moved by a few pixels."""
    boxes = torch.tensor([annotation["bbox"] for annotation in record["annotations"]])
    boxes = boxes[torch.randint(len(boxes), (500,))]
    return (boxes + 2 * torch.randn(boxes.shape)).clamp(0, record["height"]).float()
