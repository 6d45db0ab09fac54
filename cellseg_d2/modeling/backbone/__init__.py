"""Backbones; importing this package registers them with Detectron2."""

from .cbam_resnet import (
    CBAM,
    CBAMResNet,
    build_cbam_resnet_backbone,
    build_cbam_resnet_fpn_backbone,
)
from .convnext import ConvNeXtBackbone, build_convnext_backbone, build_convnext_fpn_backbone

__all__ = [
    "CBAM",
    "CBAMResNet",
    "ConvNeXtBackbone",
    "build_cbam_resnet_backbone",
    "build_cbam_resnet_fpn_backbone",
    "build_convnext_backbone",
    "build_convnext_fpn_backbone",
]
