"""This program: its mapper, its training step, its predictor."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model

import cellseg_d2.modeling.mask_head as our_mask_head
from cellseg_d2 import load_config
from cellseg_d2.data import CellDatasetMapper
from cellseg_d2.engine.train_step import TrainStep
from cellseg_d2.inference import CellPredictor
from cellseg_d2.modeling.losses import build_mask_loss

from .detectron import LEARNING_RATE, MOMENTUM, Trainer, endless, make_targets, watch_targets
from .parts import DATA, POSTPROCESSING, TARGETS, Parts


class Side:
    """See ``stock.Side``, of which this is the counterpart."""

    def __init__(self, folder: Path, device: str, parts: Parts) -> None:
        self.parts = parts
        self.records = pickle.loads((folder / "records.pkl").read_bytes())
        self.proposals = torch.load(folder / "proposals.pt")
        self.cfg = load_config(folder / "ours.yaml", ["MODEL.DEVICE", device])
        self.model = build_model(self.cfg)
        weights = torch.load(folder / "detectron2.pth", weights_only=True)["model"]
        self.model.load_state_dict(weights)
        self.mapper = CellDatasetMapper(
            self.cfg, is_train=True, augmentations=[T.RandomFlip(prob=1.0)]
        )
        watch_targets(parts, self.model)
        parts.watch(our_mask_head, "roi_mask_loss", TARGETS)
        optimizer = torch.optim.SGD(self.model.parameters(), LEARNING_RATE, MOMENTUM)
        batches = endless(self.records, self.mapper, parts)
        self.train = Trainer(TrainStep(self.model, batches, optimizer, seed=0))
        self.predictor = CellPredictor(self.cfg, [str(folder / "detectron2.pth")])
        (finder,) = self.predictor.models
        parts.watch(self.predictor, "_read", DATA)
        parts.watch(finder, "_model_input", DATA)
        parts.watch(finder.model, "_postprocess_one", POSTPROCESSING)

    def targets(self) -> None:
        """Read a batch and make its targets, without the network."""
        batch = [self.mapper(record, k) for k, record in enumerate(self.records)]
        loss = build_mask_loss(self.cfg)
        make_targets(
            self.model,
            batch,
            lambda logits, foreground: our_mask_head.roi_mask_loss(logits, foreground, loss),
            self.proposals,
        )

    def predict(self) -> dict[str, Any]:
        """Read and predict all images in one batch, down to run-length codes."""
        answers = list(self.predictor.predict_all([r["file_name"] for r in self.records]))
        return {
            "scores": [sorted(answer.scores.tolist()) for answer in answers],
            "rles": [len(answer.pred_masks.rles) for answer in answers],
        }
