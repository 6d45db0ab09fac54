"""A feature pyramid over any bottom-up backbone whose outputs are named ``res2`` to ``res5``."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool


def build_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """Build the FPN that upstream's ``build_resnet_fpn_backbone`` puts over its ResNet.

    Args:
        cfg: reads ``MODEL.FPN``.
        bottom_up: gives out at least the features of ``MODEL.FPN.IN_FEATURES``.

    Returns:
        A backbone with features ``p2`` to ``p5`` for ``res2`` to ``res5``, and ``p6``, which is
        ``p5`` at every other pixel; each of ``MODEL.FPN.OUT_CHANNELS`` channels.
    """
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
