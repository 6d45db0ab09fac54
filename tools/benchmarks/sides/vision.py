"""torchvision's Mask R-CNN, with bitmaps from end to end. Nothing of this program is imported."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
import tifffile
import torch
import torchvision.models.detection.roi_heads as vision_roi_heads
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import masks_to_boxes

from .parts import DATA, ENCODING, POSTPROCESSING, TARGETS, Parts

LEARNING_RATE, MOMENTUM = 1e-4, 0.9
STRIDES = (4, 8, 16, 32, 64)


def build_detector(depth: int, arguments: dict[str, Any]) -> MaskRCNN:
    """Build ``maskrcnn_resnet50_fpn``, or the small config's model from torchvision's parts.

    Args:
        depth: 50, or 18 for a ResNet-18-FPN of 64 channels with norms.
        arguments: of ``MaskRCNN``, with ``sizes`` of the anchors and ``num_classes``, background
            included.
    """
    arguments = dict(arguments)
    sizes, num_classes = arguments.pop("sizes"), arguments.pop("num_classes")
    anchors = AnchorGenerator(tuple(map(tuple, sizes)), ((0.5, 1.0, 2.0),) * len(sizes))
    arguments |= {"rpn_anchor_generator": anchors, "_skip_resize": True}
    if depth == 50:
        return maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=num_classes,
            trainable_backbone_layers=5,
            **arguments,
        )
    channels, hidden = 64, 256
    layers = {f"layer{k}": str(k - 1) for k in range(1, 5)}
    backbone = BackboneWithFPN(
        resnet18(weights=None), layers, [64, 128, 256, 512], channels, norm_layer=nn.BatchNorm2d
    )
    return MaskRCNN(
        backbone,
        box_head=TwoMLPHead(channels * 7 * 7, hidden),
        box_predictor=FastRCNNPredictor(hidden, num_classes),
        mask_head=MaskRCNNHeads(channels, (channels, channels), 1),
        mask_predictor=MaskRCNNPredictor(channels, channels, num_classes),
        **arguments,
    )


class Side:
    """See ``stock.Side``; data and training as in torchvision's own tutorial and reference."""

    def __init__(self, folder: Path, device: str, parts: Parts) -> None:
        self.parts, self.device = parts, device
        self.records = pickle.loads((folder / "records.pkl").read_bytes())
        self.proposals = torch.load(folder / "proposals.pt")
        arguments = json.loads((folder / "vision.json").read_text())
        weights = torch.load(folder / "vision.pth", weights_only=True)
        self.model, self.predictor = (build_detector(**arguments).to(device) for _ in range(2))
        self.model.load_state_dict(weights)
        self.predictor.load_state_dict(weights)
        self.predictor.eval()
        parts.watch(self.model.rpn, "assign_targets_to_anchors", TARGETS)
        parts.watch(self.model.rpn, "compute_loss", TARGETS)
        parts.watch(self.model.roi_heads, "select_training_samples", TARGETS)
        parts.watch(vision_roi_heads, "fastrcnn_loss", TARGETS)
        parts.watch(vision_roi_heads, "maskrcnn_loss", TARGETS)
        parts.watch(self.predictor.transform, "postprocess", POSTPROCESSING)
        self.optimizer = torch.optim.SGD(self.model.parameters(), LEARNING_RATE, MOMENTUM)

    def train(self) -> float:
        """Run one iteration and return its total loss."""
        with self.parts.time(DATA):
            images, targets = self._batch()
        losses = self.model(images, targets)
        total = sum(losses.values())
        values = [loss.item() for loss in losses.values()]  # logged, and looked at for NaN
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return float(sum(values))

    def targets(self) -> None:
        """Read a batch and make its targets, without the network."""
        images, targets = self._batch()
        height, width = images[0].shape[1:]
        features = [
            torch.zeros(1, 1, -(-height // s), -(-width // s), device=self.device) for s in STRIDES
        ]
        batch = ImageList(torch.stack(images), [(height, width)] * len(images))
        anchors = self.model.rpn.anchor_generator(batch, features)
        self.model.rpn.assign_targets_to_anchors(anchors, targets)
        found = [self.proposals.to(self.device) for _ in targets]
        heads = self.model.roi_heads
        found, matched, labels, _ = heads.select_training_samples(found, targets)
        positive = [torch.where(label > 0)[0] for label in labels]
        found = [boxes[keep] for boxes, keep in zip(found, positive, strict=True)]
        matched = [index[keep] for index, keep in zip(matched, positive, strict=True)]
        classes = heads.box_predictor.cls_score.out_features
        logits = torch.zeros(sum(map(len, found)), classes, 28, 28, device=self.device)
        vision_roi_heads.maskrcnn_loss(
            logits, found, [t["masks"] for t in targets], [t["labels"] for t in targets], matched
        )

    def predict(self) -> dict[str, Any]:
        """Read and predict all images in one batch, down to run-length codes."""
        with self.parts.time(DATA):
            images = [self._image(record) for record in self.records]
        with torch.no_grad():
            answers = self.predictor(images)
        with self.parts.time(ENCODING):
            rles = [
                [
                    mask_utils.encode(np.array(mask[0, :, :, None], order="F", dtype=np.uint8))[0]
                    for mask in (answer["masks"] >= 0.5).cpu().numpy()
                ]
                for answer in answers
            ]
        return {
            "scores": [sorted(answer["scores"].tolist()) for answer in answers],
            "rles": list(map(len, rles)),
        }

    def _image(self, record: dict[str, Any]) -> torch.Tensor:
        image = tifffile.imread(record["file_name"]).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(image)).to(self.device) / 255

    def _batch(self) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
        """One bitmap an instance, all of them flipped from left to right."""
        images, targets = [], []
        for record in self.records:
            masks, labels = [], []
            for category, path in record["label_file_names"].items():
                label_map = torch.from_numpy(tifffile.imread(path))
                ids = label_map.unique()[1:]
                masks.append((label_map == ids[:, None, None]).to(torch.uint8))
                labels.append(torch.full((len(ids),), category + 1))
            bitmaps = torch.cat(masks).flip(-1)
            boxes = masks_to_boxes(bitmaps) + torch.tensor([0, 0, 1, 1])  # ends are exclusive
            target = {"boxes": boxes, "labels": torch.cat(labels), "masks": bitmaps}
            targets.append({name: value.to(self.device) for name, value in target.items()})
            images.append(self._image(record).flip(-1))
        return images, targets
