"""Mask R-CNN whose predicted masks go from RoI to run lengths without a bitmap in between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, ROIHeads
from detectron2.structures import Boxes, ImageList, Instances

from ..errors import ConfigError
from ..structures import RLEMasks, encode_roi_masks
from .center_boundary_head import CenterBoundaryHead
from .class_weights import weight_classes
from .mixed_precision import score_in_full_precision, use_amp
from .nms import SoftNMS, mask_nms
from .pooler import replace_poolers
from .rescoring import Rescoring, weigh_objectness

MASK_THRESHOLD = 0.5
"""Probability from which a pixel belongs to a mask, as in upstream's post-processing."""


@META_ARCH_REGISTRY.register()
class CellRCNN(GeneralizedRCNN):
    """``GeneralizedRCNN`` that answers with ``pred_masks: RLEMasks``.

    Upstream pastes each mask into an image-sized bitmap, N·H·W bytes for N cells; the answer here
    holds the same masks to the bit.

    With ``MODEL.CENTER_BOUNDARY_HEAD.ENABLED`` the losses of that head are added in training.
    ``TEST.SOFT_NMS`` and ``TEST.MASK_NMS`` thin out detections in their own way, and
    ``TEST.RESCORE`` weighs their scores, whatever the RoI heads are.
    """

    @configurable
    def __init__(
        self,
        *,
        center_boundary_head: CenterBoundaryHead | None = None,
        soft_nms: SoftNMS | None = None,
        mask_nms_threshold: float = 1.0,
        rescoring: Rescoring | None = None,
        channels_last: bool = False,
        test_amp: torch.dtype | None = None,
        **arguments: Any,
    ) -> None:
        """Build the model from its parts.

        Args:
            center_boundary_head: auxiliary head; None for none.
            soft_nms: thins out the RoI heads' boxes, which then have to give out all candidates;
                None leaves that to the RoI heads.
            mask_nms_threshold: IoU of masks of one class above which the lower score is dropped; 1
                keeps all.
            rescoring: weighs the scores; None leaves them as they are.
            channels_last: whether the backbone is given images in that memory format, which its
                features then keep.
            test_amp: what to predict in, in mixed precision; None for full precision.
            arguments: those of ``GeneralizedRCNN``.
        """
        super().__init__(**arguments)
        self.center_boundary_head = center_boundary_head
        self.soft_nms = soft_nms
        self.mask_nms_threshold = mask_nms_threshold
        self.rescoring = rescoring
        if rescoring is not None:
            weigh_objectness(self.roi_heads, rescoring.objectness)
        self.channels_last = channels_last
        self.test_amp = test_amp
        if test_amp is not None:
            score_in_full_precision(self.roi_heads)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts that a config asks for.

        Raises:
            ConfigError: where the auxiliary head's feature is none of the backbone's, or
                ``TEST.SOFT_NMS``, ``TEST.MASK_NMS``, ``TEST.RESCORE`` or
                ``MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS`` is out of range.
        """
        soft_nms, threshold = SoftNMS.from_config(cfg), cfg.TEST.MASK_NMS.THRESHOLD
        if not 0 <= threshold <= 1:
            raise ConfigError(f"TEST.MASK_NMS.THRESHOLD is {threshold}; it lies in [0, 1]")
        arguments = super().from_config(cfg if soft_nms is None else _without_nms(cfg))
        arguments |= {
            "soft_nms": soft_nms,
            "mask_nms_threshold": threshold,
            "rescoring": Rescoring.from_config(cfg),
            "channels_last": cfg.MODEL.CHANNELS_LAST,
            "test_amp": use_amp(
                cfg.TEST.AMP.ENABLED, cfg.MODEL.DEVICE, cfg.SOLVER.AMP.DTYPE, "TEST.AMP.ENABLED"
            ),
        }
        replace_poolers(arguments["roi_heads"])
        weight_classes(arguments["roi_heads"], cfg.MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS)
        if cfg.MODEL.CENTER_BOUNDARY_HEAD.ENABLED:
            shapes = arguments["backbone"].output_shape()
            arguments["center_boundary_head"] = CenterBoundaryHead(cfg, shapes)
        return arguments

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Train or predict; see ``GeneralizedRCNN.forward``.

        Args:
            batched_inputs: dicts as ``CellDatasetMapper`` makes them.

        Returns:
            In training a dict of losses, else what ``inference`` returns.

        Raises:
            ValueError: where the auxiliary head is on and its targets are missing.
        """
        head = self.center_boundary_head
        if not self.training or head is None:
            return super().forward(batched_inputs)
        if any("center_map" not in item or "boundary_map" not in item for item in batched_inputs):
            raise ValueError(
                "MODEL.CENTER_BOUNDARY_HEAD is enabled and a sample has no center_map and "
                "boundary_map; CellDatasetMapper adds them under the same config"
            )
        # Upstream's forward keeps the features to itself. A copy of it would have to follow every
        # change there, and a second pass of the backbone would double its cost.
        seen: list[tuple[tuple[int, int], dict[str, torch.Tensor]]] = []
        hook = self.backbone.register_forward_hook(
            lambda _, images, features: seen.append((tuple(images[0].shape[-2:]), features))
        )
        try:
            losses = super().forward(batched_inputs)
        finally:
            hook.remove()
        ((padded_size, features),) = seen
        return losses | head(
            features,
            [item["center_map"].to(self.device) for item in batched_inputs],
            [item["boundary_map"].to(self.device) for item in batched_inputs],
            padded_size,
        )

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise and batch the images; see ``GeneralizedRCNN.preprocess_image``."""
        images = super().preprocess_image(batched_inputs)
        if self.channels_last:
            images.tensor = images.tensor.contiguous(memory_format=torch.channels_last)
        return images

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
        with self._test_precision():
            if self.soft_nms is None or detected_instances is not None:
                raw = super().inference(batched_inputs, detected_instances, do_postprocess=False)
            else:
                raw = self._inference_with_soft_nms(batched_inputs, self.soft_nms)
        if self.rescoring is not None and detected_instances is None:
            raw = [self.rescoring.weigh_masks(item, MASK_THRESHOLD) for item in raw]
        if not do_postprocess:
            return raw
        return [
            {
                "instances": self._postprocess_one(
                    instances,
                    item.get("height", instances.image_size[0]),
                    item.get("width", instances.image_size[1]),
                )
            }
            for instances, item in zip(raw, batched_inputs, strict=True)
        ]

    def _test_precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.test_amp is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.test_amp)

    def _inference_with_soft_nms(
        self, batched_inputs: list[dict[str, Any]], soft_nms: SoftNMS
    ) -> list[Instances]:
        """Predict boxes, thin them out, then predict masks of those left."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, features, None)
        with _boxes_only(self.roi_heads):
            candidates, _ = self.roi_heads(images, features, proposals, None)
        detections = [soft_nms(instances) for instances in candidates]
        return self.roi_heads.forward_with_given_boxes(features, detections)

    def _postprocess_one(self, raw: Instances, height: int, width: int) -> Instances:
        results = rescale_to_rles(raw, height, width)
        if self.mask_nms_threshold == 1 or not results.has("pred_masks"):
            return results
        keep = mask_nms(
            results.pred_masks.rles, results.scores, results.pred_classes, self.mask_nms_threshold
        )
        return results[keep]


def _without_nms(cfg: CfgNode) -> CfgNode:
    """The same config with RoI heads that give out every box above the score threshold."""
    cfg = cfg.clone()
    cfg.defrost()
    # Two boxes never overlap by more than all, and upstream reads -1 as no limit.
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    cfg.TEST.DETECTIONS_PER_IMAGE = -1
    return cfg


@contextlib.contextmanager
def _boxes_only(roi_heads: ROIHeads) -> Iterator[None]:
    """Turn the mask head off for a while, as upstream's ``GeneralizedRCNNWithTTA`` does."""
    mask_on = roi_heads.mask_on
    roi_heads.mask_on = False
    try:
        yield
    finally:
        roi_heads.mask_on = mask_on


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
                # Half precision would round where in the image a pixel lies.
                rescaled.pred_masks.float(),
                rescaled.pred_boxes.tensor.float(),
                (height, width),
                MASK_THRESHOLD,
            )
        rescaled.pred_masks = RLEMasks(rles, (height, width))
    return rescaled
