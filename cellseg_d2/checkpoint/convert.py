"""Conversion of torchvision's and ConvNeXt's weights into Detectron2's files.

What cannot be carried over by names is done here: torchvision's detectors count the background as
class 0, Detectron2's classifier as the last one, and its boxes and masks have no background.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch

from ..errors import CellDataError
from .files import check_state_dict, read_tensors, replace_file
from .names import KINDS, detect_kind, rename

_Array = np.ndarray[Any, Any]

BATCH_NORM_EPSILON = 1e-5
"""What every BatchNorm of Detectron2 adds to the variance."""

# ImageNet's, times 255.
_MEAN, _STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]

_AUTHORS = {
    "resnet": "torchvision",
    "convnext": "torchvision",
    "convnext-original": "facebookresearch/ConvNeXt",
    "detector": "torchvision",
    "detector-v2": "torchvision",
}


@dataclass(frozen=True)
class Conversion:
    """Weights under Detectron2's names, and how they came by them.

    Attributes:
        kind: of source, one of ``names.KINDS``.
        weights: {new name: float array}.
        names: {old name: new name} of all in ``weights``, in the file's order.
        left: old names of what has no place in the new model.
    """

    kind: str
    weights: dict[str, _Array]
    names: dict[str, str]
    left: list[str]


def convert_file(
    source: str | PathLike[str],
    target: str | PathLike[str],
    kind: str = "auto",
    *,
    epsilon: float = BATCH_NORM_EPSILON,
) -> Conversion:
    """Convert a ``.pth`` of torchvision or ConvNeXt into a Detectron2 ``.pkl``.

    Backbones are written under names that match by their ends, so that one file fits the plain
    backbone, the one with attention, and both under an FPN or in a C4 model. Detectors are written
    under full names.

    What stays different between torchvision's detector and a Detectron2 model of the usual config,
    by design of the two: torchvision rounds its anchors to whole pixels, centres them on pixel
    corners, and takes their strides from the sizes of the feature maps; its RoIAlign is unaligned
    and samples 2x2 points a bin; it drops boxes below .01 px, resizes images as floats, and pastes
    masks into boxes of whole pixels.

    Args:
        source: a state dict, or a checkpoint with one under ``model`` or ``state_dict``.
        target: the file to write, whole or not at all.
        kind: one of ``names.KINDS``, or "auto".
        epsilon: what the source's BatchNorms add to the variance: 0 for torchvision's COCO_V1
            weights of ``maskrcnn_resnet50_fpn``, the default for all others.

    Returns:
        What was written, and under which names.

    Raises:
        CellDataError: for a file that cannot be read, or is of no known kind, or holds a parameter
            that the kind does not know.
    """
    weights = _state_dict(source)
    conversion = convert_weights(weights, kind, epsilon=epsilon, source=source)
    data = {
        "model": conversion.weights,
        "__author__": _AUTHORS[conversion.kind],
        "matching_heuristics": not conversion.kind.startswith("detector"),
    }
    with replace_file(target) as file:
        pickle.dump(data, file, protocol=4)
    return conversion


def convert_weights(
    weights: Mapping[str, torch.Tensor],
    kind: str = "auto",
    *,
    epsilon: float = BATCH_NORM_EPSILON,
    source: str | PathLike[str] = "weights",
) -> Conversion:
    """Rename weights and rearrange what the libraries arrange differently; see ``convert_file``.

    Args:
        weights: {name: tensor}.
        kind: one of ``names.KINDS``, or "auto".
        epsilon: see ``convert_file``.
        source: what errors name.

    Raises:
        CellDataError: as ``convert_file``.
    """
    found = detect_kind(weights) if kind == "auto" else kind
    if found is None:
        raise CellDataError(
            source,
            f"parameters of no known model ({', '.join(list(weights)[:3])}, …)",
            f"a model of kind {', '.join(KINDS)}",
            "give a file of torchvision or of facebookresearch/ConvNeXt",
        )
    arrays: dict[str, _Array] = {}
    names: dict[str, str] = {}
    left, unknown = [], []
    for name, tensor in weights.items():
        known, new = rename(found, name)
        if not known:
            unknown.append(name)
        elif new is None:
            left.append(name)
        else:
            names[name] = new
            arrays[new] = _rearrange(new, tensor.detach().float().numpy())
    if unknown or not arrays:
        raise CellDataError(
            source,
            f"{len(unknown)} parameters that kind {found} does not know "
            f"({', '.join(unknown[:3])}{', …' if len(unknown) > 3 else ''})",
            f"a model of kind {found}",
            f"check --kind; known kinds are {', '.join(KINDS)}",
        )
    if epsilon != BATCH_NORM_EPSILON:
        _absorb_epsilon(arrays, epsilon)
    return Conversion(found, arrays, names, left)


def report(conversion: Conversion) -> str:
    """Say what was kept, renamed and left, by layer with ``*`` for numbers, and what it needs."""
    kept = [_layer(old) for old, new in conversion.names.items() if old == new]
    renamed = [
        f"{_layer(old)} -> {_layer(new)}" for old, new in conversion.names.items() if old != new
    ]
    rearranged = [_layer(new) for new in conversion.names.values() if _change_of(new)]
    left = [_starred(name) for name in conversion.left]
    lines = [f"kind {conversion.kind}: {len(kept) + len(renamed) + len(left)} arrays in the file"]
    for title, group in (
        ("kept their name", kept),
        ("renamed", renamed),
        ("of these rearranged: other places of the background, or another shape", rearranged),
        ("left: no place in a detector, or not read by it", left),
    ):
        lines.append(f"{len(group)} {title}")
        lines += [f"  {layer} ({count})" for layer, count in Counter(group).items()]
    needs = f"the config needs INPUT.FORMAT RGB, MODEL.PIXEL_MEAN {_MEAN}, MODEL.PIXEL_STD {_STD}"
    if "convnext" not in conversion.kind:
        needs += ", MODEL.RESNETS.STRIDE_IN_1X1 False"
    return "\n".join([*lines, needs])


def _state_dict(source: str | PathLike[str]) -> dict[str, torch.Tensor]:
    loaded = read_tensors(source)
    for key in ("model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    check_state_dict(source, loaded)
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def _rearrange(name: str, array: _Array) -> _Array:
    change = _change_of(name)
    return np.ascontiguousarray(change(array)) if change else array


def _change_of(name: str) -> Callable[[_Array], _Array] | None:
    """Return what brings an array into the order of Detectron2's layer of this name, if needed."""
    layer, _, kind = name.rpartition(".")
    return _CHANGES.get(kind) or _CHANGES.get(".".join(layer.split(".")[-2:]))


_CHANGES: dict[str, Callable[[_Array], _Array]] = {
    # (classes, ...): the background goes from the first place to the last.
    "box_predictor.cls_score": lambda a: np.roll(a, -1, axis=0),
    # (4 x classes, ...) and (classes, ...): without the background.
    "box_predictor.bbox_pred": lambda a: a[4:],
    "mask_head.predictor": lambda a: a[1:],
    # (C,) in the original, (C, 1, 1) in torchvision.
    "layer_scale": lambda a: a.reshape(-1, 1, 1),
}


def _absorb_epsilon(arrays: dict[str, _Array], epsilon: float) -> None:
    # Into the factor, not the variance: that can be far smaller than either epsilon.
    for name, variance in arrays.items():
        if name.endswith(".running_var"):
            factor = name.removesuffix("running_var") + "weight"
            wanted = np.maximum(variance.astype(np.float64) + epsilon, np.finfo(np.float32).tiny)
            ratio = np.sqrt((variance + BATCH_NORM_EPSILON) / wanted)
            arrays[factor] = (arrays[factor] * ratio).astype(np.float32)


def _layer(name: str) -> str:
    return _starred(name.rpartition(".")[0])


def _starred(name: str) -> str:
    return re.sub(r"\d+(?=\.|$)", "*", name)
