"""Stock Detectron2: masks as bitmaps from end to end. Nothing of this program is imported."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import detectron2.modeling.roi_heads.mask_head as upstream_mask_head
import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from detectron2.engine import SimpleTrainer
from detectron2.modeling import GeneralizedRCNN, build_model

from .detectron import LEARNING_RATE, MOMENTUM, Trainer, endless, make_targets, watch_targets
from .parts import DATA, ENCODING, POSTPROCESSING, TARGETS, Parts


class Side:
    """``DatasetMapper``, ``BitMasks``, ``GeneralizedRCNN``, ``SimpleTrainer``, pycocotools.

    Args:
        folder: what ``case.write`` wrote.
        device: "cpu" or "cuda".
        parts: where to count the time.
    """

    def __init__(self, folder: Path, device: str, parts: Parts) -> None:
        self.parts = parts
        self.records = pickle.loads((folder / "records.pkl").read_bytes())
        self.proposals = torch.load(folder / "proposals.pt")
        self.cfg = get_cfg()
        self.cfg.merge_from_file(str(folder / "stock.yaml"))
        self.cfg.MODEL.DEVICE = device
        weights = torch.load(folder / "detectron2.pth", weights_only=True)["model"]
        self.model, self.predictor = build_model(self.cfg), build_model(self.cfg).eval()
        self.model.load_state_dict(weights)
        self.predictor.load_state_dict(weights)
        self.mapper = DatasetMapper(
            is_train=True,
            augmentations=[T.RandomFlip(prob=1.0)],
            image_format=self.cfg.INPUT.FORMAT,
            use_instance_mask=True,
            instance_mask_format="bitmask",
        )
        watch_targets(parts, self.model)
        parts.watch(upstream_mask_head, "mask_rcnn_loss", TARGETS)
        parts.watch(GeneralizedRCNN, "_postprocess", POSTPROCESSING)
        optimizer = torch.optim.SGD(self.model.parameters(), LEARNING_RATE, MOMENTUM)
        batches = endless(self.records, lambda record, _: self.mapper(record), parts)
        seeds = np.load(folder / "seeds.npy")
        self.train = Trainer(SimpleTrainer(self.model, batches, optimizer), lambda i: int(seeds[i]))

    def targets(self) -> None:
        """Read a batch and make its targets, without the network."""
        batch = [self.mapper(record) for record in self.records]
        make_targets(self.model, batch, upstream_mask_head.mask_rcnn_loss, self.proposals)

    def predict(self) -> dict[str, Any]:
        """Read and predict all images in one batch, down to run-length codes."""
        with self.parts.time(DATA):
            inputs = self._inputs()
        with torch.no_grad():
            answers = [output["instances"].to("cpu") for output in self.predictor(inputs)]
        with self.parts.time(ENCODING):
            rles = [encode_bitmaps(answer.pred_masks) for answer in answers]
        return {
            "scores": [sorted(answer.scores.tolist()) for answer in answers],
            "rles": list(map(len, rles)),
        }

    def save_postprocessed(self, path: Path) -> None:
        """Write what the network gave out for each image, and the run-length codes made of it."""
        inputs = self._inputs()
        with torch.no_grad():
            raw = self.predictor.inference(inputs, do_postprocess=False)
            sizes = [item.image_size for item in raw]
            outputs = GeneralizedRCNN._postprocess(raw, inputs, sizes)
        rles = [encode_bitmaps(output["instances"].pred_masks.cpu()) for output in outputs]
        path.write_bytes(pickle.dumps(([item.to("cpu") for item in raw], rles)))

    def _inputs(self) -> list[dict[str, Any]]:
        return [
            {
                "image": torch.from_numpy(
                    np.ascontiguousarray(
                        read_image(record["file_name"], self.cfg.INPUT.FORMAT).transpose(2, 0, 1)
                    )
                ),
                "height": record["height"],
                "width": record["width"],
            }
            for record in self.records
        ]


def encode_bitmaps(masks: torch.Tensor) -> list[dict[str, Any]]:
    """Turn (N, H, W) bool into N RLEs, one at a time as ``instances_to_coco_json`` does."""
    return [
        mask_utils.encode(np.array(mask[:, :, None], order="F", dtype=np.uint8))[0]
        for mask in masks
    ]
