"""Which model a file holds, by its names; what the names become is proved in test_convert."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import convnext_tiny, resnet18, resnext50_32x4d
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)

from cellseg_d2.checkpoint.names import KINDS, detect_kind, rename

NONE = {"weights": None, "weights_backbone": None}


@pytest.mark.parametrize(
    ("build", "options", "kind"),
    [
        (resnet18, {}, "resnet"),
        (resnext50_32x4d, {}, "resnet"),
        (convnext_tiny, {}, "convnext"),
        (fasterrcnn_resnet50_fpn, NONE, "detector"),
        (maskrcnn_resnet50_fpn, NONE, "detector"),
        (maskrcnn_resnet50_fpn_v2, NONE, "detector-v2"),
    ],
)
def test_kinds_are_told_apart_and_every_name_is_known(build, options: dict, kind: str) -> None:
    with torch.device("meta"):
        names = list(build(**options).state_dict())
    assert detect_kind(names) == kind
    new = [rename(kind, name) for name in names]
    assert all(known for known, _ in new)
    kept = [name for _, name in new if name]
    assert len(set(kept)) == len(kept) > 0


def test_unknown_names() -> None:
    assert detect_kind(["fc.weight"]) is None
    for kind in KINDS:
        assert rename(kind, "transformer.layers.0.weight") == (False, None)
        # Only whole names: an ending of a known one is another layer.
        assert not rename(kind, "student.layer1.0.conv1.weight")[0]
