"""What is the same in a training with Detectron2, stock or ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import detectron2.modeling.roi_heads.roi_heads as upstream_roi_heads
import torch
from detectron2.modeling.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from .parts import DATA, TARGETS, Parts

LEARNING_RATE, MOMENTUM = 1e-4, 0.9
MASK_SIZE = 28


def watch_targets(parts: Parts, model: Any) -> None:
    """Count matching, sampling and losses of the RPN and the box head, and the masks' selection."""
    parts.watch(model.proposal_generator, "label_and_sample_anchors", TARGETS)
    parts.watch(model.proposal_generator, "losses", TARGETS)
    parts.watch(model.roi_heads, "label_and_sample_proposals", TARGETS)
    parts.watch(model.roi_heads.box_predictor, "losses", TARGETS)
    parts.watch(upstream_roi_heads, "select_foreground_proposals", TARGETS)


def endless(
    records: Sequence[dict[str, Any]],
    mapper: Callable[[dict[str, Any], int], dict[str, Any]],
    parts: Parts,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the same batch for ever, read anew each time; without worker processes."""
    while True:
        with parts.time(DATA):
            batch = [mapper(record, position) for position, record in enumerate(records)]
        yield batch


class Trainer:
    """One iteration at a time, with the same random numbers on both sides.

    Args:
        step: the trainer to run, which puts its losses into the event storage.
        seed: gives the iteration's seed; None where the trainer seeds itself.
    """

    def __init__(self, step: Any, seed: Callable[[int], int] | None = None) -> None:
        self._step, self._seed = step, seed
        self._storage = EventStorage(0)

    def __call__(self) -> float:
        """Run one iteration and return its total loss."""
        with self._storage as storage:
            self._step.iter = storage.iter
            if self._seed is not None:
                torch.manual_seed(self._seed(storage.iter))
            self._step.run_step()
            loss = storage.latest()["total_loss"][0]
            storage.step()
        return float(loss)


def make_targets(
    model: Any, batch: list[dict[str, Any]], mask_loss: Callable[..., Any], proposals: torch.Tensor
) -> None:
    """Make the targets of a batch and the masks' loss, without the network.

    Args:
        model: whose anchors, matchers and samplers to use.
        batch: as the mapper makes it.
        mask_loss: of (N, K, M, M) logits and the foreground instances.
        proposals: (P, 4) XYXY in pixels, what the RPN found, for each image.
    """
    instances = [item["instances"].to(model.device) for item in batch]
    height, width = batch[0]["image"].shape[1:]
    shapes = model.backbone.output_shape()
    features = [
        torch.zeros(1, 1, -(-height // shapes[f].stride), -(-width // shapes[f].stride))
        for f in model.proposal_generator.in_features
    ]
    with EventStorage(0):
        anchors = model.proposal_generator.anchor_generator([f.to(model.device) for f in features])
        model.proposal_generator.label_and_sample_anchors(anchors, instances)
        found = [
            Instances(
                item.image_size,
                proposal_boxes=Boxes(proposals.to(model.device)),
                objectness_logits=torch.zeros(len(proposals), device=model.device),
            )
            for item in instances
        ]
        num_classes = model.roi_heads.num_classes
        sampled = model.roi_heads.label_and_sample_proposals(found, instances)
        foreground, _ = select_foreground_proposals(sampled, num_classes)
        count = sum(map(len, foreground))
        logits = torch.zeros(count, num_classes, MASK_SIZE, MASK_SIZE, device=model.device)
        mask_loss(logits, foreground)
