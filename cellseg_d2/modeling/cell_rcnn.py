"""Mask R-CNN whose predicted masks go from RoI to run lengths without a bitmap in between."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes, Instances

from ..structures import RLEMasks, encode_roi_masks

MASK_THRESHOLD = 0.5
"""Probability from which a pixel belongs to a mask, as in upstream's post-processing."""


@META_ARCH_REGISTRY.register()
class CellRCNN(GeneralizedRCNN):
    """``GeneralizedRCNN`` that answers with ``pred_masks: RLEMasks``.

    Upstream pastes each mask into an image-sized bitmap, N·H·W bytes for N cells; the answer here
    holds the same masks to the bit.
    """

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[Any]:
        """Predict; see ``GeneralizedRCNN.inference``.

        Returns:
            For each input a dict with ``instances`` in the coordinates of the input's ``height``
            and ``width``; without post-processing, ``Instances`` with raw (N, 1, M, M) masks.
        """
        raw = super().inference(batched_inputs, detected_instances, do_postprocess=False)
        if not do_postprocess:
            return raw
        return [
            {
                "instances": rescale_to_rles(
                    instances,
                    item.get("height", instances.image_size[0]),
                    item.get("width", instances.image_size[1]),
                )
            }
            for instances, item in zip(raw, batched_inputs, strict=True)
        ]


def rescale_to_rles(results: Instances, height: int, width: int) -> Instances:
    """Bring a detector's raw answer to the size of the original image.

    It does what ``detector_postprocess`` does, with masks as run lengths.

    Args:
        results: ``pred_boxes``, ``scores``, ``pred_classes`` and, where the model has a mask head,
            ``pred_masks`` (N, 1, M, M), probabilities; in the coordinates of the model's input.
        height: of the original image in pixels.
        width: of the original image in pixels.

    Returns:
        The instances whose box has an extent inside the image, with ``pred_masks: RLEMasks``.
    """
    scale_y, scale_x = height / results.image_size[0], width / results.image_size[1]
    fields = dict(results.get_fields())
    boxes = Boxes(fields["pred_boxes"].tensor.clone())
    boxes.scale(scale_x, scale_y)
    boxes.clip((height, width))
    fields["pred_boxes"] = boxes
    rescaled = Instances((height, width), **fields)[boxes.nonempty()]
    if rescaled.has("pred_masks"):
        with torch.no_grad():
            rles = encode_roi_masks(
                rescaled.pred_masks, rescaled.pred_boxes.tensor, (height, width), MASK_THRESHOLD
            )
        rescaled.pred_masks = RLEMasks(rles, (height, width))
    return rescaled
