"""What torchvision's and ConvNeXt's parameters are called in Detectron2's models.

Each kind of source is a list of rules, tried in turn: a pattern of the whole name, and the new name
with the pattern's groups, or None for a parameter that has no place here. Facts from the sources:
torchvision 0.26 ``models/{resnet,convnext}.py`` and ``models/detection`` (BSD-3-Clause; older files
name some layers of the detectors differently, and torchvision renames them on loading) and
facebookresearch/ConvNeXt ``models/convnext.py`` (MIT).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Rule = tuple[str, str | None]

_BATCHES = (r".*\.num_batches_tracked", None)  # a count that nothing reads


def _shift(pattern: str, name: str, numbers: Iterable[int], by: int) -> list[Rule]:
    """One rule for each number in a name; ``{}`` stands for it, shifted ``by`` in the new name."""
    return [(pattern.replace("{}", str(n)), name.replace("{}", str(n + by))) for n in numbers]


def _resnet(old: str = "", new: str = "") -> list[Rule]:
    """Rules of a torchvision ResNet or ResNeXt under prefixes."""
    prefix = re.escape(old)
    block = rf"{prefix}layer{{}}\.(\d+)\."
    return [
        (rf"{prefix}conv1\.(weight)", rf"{new}stem.conv1.\1"),
        (rf"{prefix}bn1\.(\w+)", rf"{new}stem.conv1.norm.\1"),
        *_shift(rf"{block}conv(\d)\.(weight)", rf"{new}res{{}}.\1.conv\2.\3", range(1, 5), 1),
        *_shift(rf"{block}bn(\d)\.(\w+)", rf"{new}res{{}}.\1.conv\2.norm.\3", range(1, 5), 1),
        *_shift(
            rf"{block}downsample\.0\.(weight)", rf"{new}res{{}}.\1.shortcut.\2", range(1, 5), 1
        ),
        *_shift(
            rf"{block}downsample\.1\.(\w+)", rf"{new}res{{}}.\1.shortcut.norm.\2", range(1, 5), 1
        ),
    ]


_BOTTOM_UP, _ROI = "backbone.bottom_up.", "roi_heads."
_BODY, _PYRAMID = "backbone.body.", r"backbone\.fpn\."

_FPN: list[Rule] = [
    rule
    for old, new in (("inner_blocks", "fpn_lateral"), ("layer_blocks", "fpn_output"))
    for rule in (
        # The convolution is the block itself in old files, and has a norm beside it in v2.
        *_shift(
            rf"{_PYRAMID}{old}\.{{}}(?:\.0)?\.(weight|bias)", rf"backbone.{new}{{}}.\1", range(4), 2
        ),
        *_shift(rf"{_PYRAMID}{old}\.{{}}\.1\.(\w+)", rf"backbone.{new}{{}}.norm.\1", range(4), 2),
    )
]

_RPN_HEAD = "proposal_generator.rpn_head."

_RPN: list[Rule] = [
    # Detectron2 numbers the convolutions only where there are several.
    (r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)", rf"{_RPN_HEAD}conv.\1"),
    (r"rpn\.head\.cls_logits\.(weight|bias)", rf"{_RPN_HEAD}objectness_logits.\1"),
    (r"rpn\.head\.bbox_pred\.(weight|bias)", rf"{_RPN_HEAD}anchor_deltas.\1"),
]
_RPN_OF_TWO: list[Rule] = [
    (r"rpn\.head\.conv\.([01])\.0\.(weight|bias)", rf"{_RPN_HEAD}conv.conv\1.\2"),
]

_HEADS: list[Rule] = [
    *_shift(rf"{_ROI}box_head\.fc{{}}\.(weight|bias)", rf"{_ROI}box_head.fc{{}}.\1", (6, 7), -5),
    *_shift(rf"{_ROI}box_head\.{{}}\.0\.(weight)", rf"{_ROI}box_head.conv{{}}.\1", range(4), 1),
    *_shift(rf"{_ROI}box_head\.{{}}\.1\.(\w+)", rf"{_ROI}box_head.conv{{}}.norm.\1", range(4), 1),
    *_shift(rf"{_ROI}box_head\.{{}}\.(weight|bias)", rf"{_ROI}box_head.fc{{}}.\1", (5,), -4),
    (rf"{_ROI}box_predictor\.(\w+)\.(weight|bias)", rf"{_ROI}box_predictor.\1.\2"),
    (rf"{_ROI}mask_head\.mask_fcn(\d)\.(weight|bias)", rf"{_ROI}mask_head.mask_fcn\1.\2"),
    *_shift(
        rf"{_ROI}mask_head\.{{}}\.0\.(weight|bias)",
        rf"{_ROI}mask_head.mask_fcn{{}}.\1",
        range(4),
        1,
    ),
    *_shift(
        rf"{_ROI}mask_head\.{{}}\.1\.(\w+)", rf"{_ROI}mask_head.mask_fcn{{}}.norm.\1", range(4), 1
    ),
    (rf"{_ROI}mask_predictor\.conv5_mask\.(weight|bias)", rf"{_ROI}mask_head.deconv.\1"),
    (rf"{_ROI}mask_predictor\.mask_fcn_logits\.(weight|bias)", rf"{_ROI}mask_head.predictor.\1"),
]

_DETECTOR = [_BATCHES, *_resnet(_BODY, _BOTTOM_UP), *_FPN]

_CONVNEXT_LAYERS = (("dwconv", 0), ("norm", 2), ("pwconv1", 3), ("pwconv2", 5))

RULES: dict[str, list[Rule]] = {
    "resnet": [_BATCHES, *_resnet(), (r"fc\.(weight|bias)", None)],
    "convnext": [(r"(features\..+)", r"\1"), (r"classifier\.[02]\.(weight|bias)", None)],
    "convnext-original": [
        (r"downsample_layers\.0\.([01])\.(weight|bias)", r"features.0.\1.\2"),
        *(
            (rf"downsample_layers\.{i}\.([01])\.(weight|bias)", rf"features.{2 * i}.\1.\2")
            for i in range(1, 4)
        ),
        *(
            (
                rf"stages\.{i}\.(\d+)\.{old}\.(weight|bias)",
                rf"features.{2 * i + 1}.\1.block.{new}.\2",
            )
            for i in range(4)
            for old, new in _CONVNEXT_LAYERS
        ),
        *(
            (rf"stages\.{i}\.(\d+)\.gamma", rf"features.{2 * i + 1}.\1.layer_scale")
            for i in range(4)
        ),
        (r"(norm|head)\.(weight|bias)", None),
    ],
    "detector": [*_DETECTOR, *_RPN, *_HEADS],
    "detector-v2": [*_DETECTOR, *_RPN_OF_TWO, *_RPN, *_HEADS],
}
"""Rules by kind of source."""

# A name that only files of the kind have; the first that is found decides.
_SIGNS = (
    ("detector-v2", "rpn.head.conv.1.0.weight"),
    ("detector", "rpn.head.cls_logits.weight"),
    ("convnext-original", "downsample_layers.0.0.weight"),
    ("convnext", "features.1.0.layer_scale"),
    ("resnet", "layer1.0.conv1.weight"),
)

KINDS = tuple(RULES)


def detect_kind(names: Iterable[str]) -> str | None:
    """Return the kind of source that parameters of these names come from, None if unknown."""
    names = set(names)
    return next((kind for kind, sign in _SIGNS if sign in names), None)


def rename(kind: str, name: str) -> tuple[bool, str | None]:
    """Apply a kind's rules to one name.

    Args:
        kind: one of ``KINDS``.
        name: a parameter's or buffer's.

    Returns:
        Whether a rule knows the name, and the new name, None where there is no place for it.
    """
    for pattern, replacement in RULES[kind]:
        match = re.fullmatch(pattern, name)
        if match:
            return True, None if replacement is None else match.expand(replacement)
    return False, None
