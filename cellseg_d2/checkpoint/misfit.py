"""How weights differ from the model that they are to be loaded into, and which of it matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.layers import FrozenBatchNorm2d

Shape = tuple[int, ...]

_SHOWN = 3  # names of each kind of misfit in an error


@dataclass(frozen=True)
class Misfit:
    """How weights and a model differ.

    Attributes:
        missing: names of the model's parameters and buffers that the weights lack.
        shapes: for each name of both, where they differ: (name, shape in the file, in the model).
        unknown: names of the weights that the model lacks, in parts that the model has.
        frozen: those of ``missing`` that no training will move.
        fitting: how many names are in both, in one shape.
    """

    missing: list[str]
    shapes: list[tuple[str, Shape, Shape]]
    unknown: list[str]
    frozen: list[str]
    fitting: int

    def faults_of_whole(self) -> list[str]:
        """Return in words what keeps the weights from being this model; empty if nothing does."""
        return [
            *_say(self.missing, "missing in the file"),
            *_say([_say_shape(*shape) for shape in self.shapes], "of another shape"),
            *_say(self.unknown, "unknown to the model"),
        ]

    def faults_of_start(self) -> list[str]:
        """Return in words what keeps a training from starting here; empty if nothing does."""
        if not self.fitting:
            return ["nothing of the file fits the model"]
        backbone = [s for s in self.shapes if s[0].startswith("backbone.")]
        return [
            *_say([_say_shape(*shape) for shape in backbone], "of another shape in the backbone"),
            *_say(self.frozen, "missing in the file but frozen in the model"),
        ]


def find_misfit(
    model: torch.nn.Module,
    weights: Mapping[str, torch.Tensor],
    *,
    absorbed_statistics: bool = False,
) -> Misfit:
    """Compare weights with the model they are for.

    It looks at names and shapes itself: upstream's ``load_state_dict`` does not report a frozen
    BatchNorm without statistics, which is what weights of a GroupNorm look like to it.

    Args:
        model: not changed.
        weights: {name: tensor}, names as in the model.
        absorbed_statistics: whether the BatchNorms of the file hold a factor and an offset only, as
            Caffe2's do.
    """
    own = model.state_dict()
    norms = {n for n, m in model.named_modules() if isinstance(m, FrozenBatchNorm2d)}
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    unknown = [name for name in weights if name not in own]
    missing: list[str] = []
    shapes: list[tuple[str, Shape, Shape]] = []
    fitting = 0
    for name, value in own.items():
        module, _, kind = name.rpartition(".")
        given: torch.Size | None
        if name in weights:
            given = weights[name].shape
        elif kind == "num_batches_tracked":
            continue  # a count that nothing here reads
        elif absorbed_statistics and module in norms and kind.startswith("running_"):
            continue
        else:
            # Matching by the ends of names leaves what is of another shape under its old name.
            given = next((weights[u].shape for u in unknown if name.endswith(f".{u}")), None)
            if given is None:
                missing.append(name)
                continue
        if given == value.shape:
            fitting += 1
        else:
            shapes.append((name, tuple(given), tuple(value.shape)))
    modules = {name for name, _ in model.named_modules()}
    return Misfit(
        missing,
        shapes,
        [name for name in unknown if _is_used(name, modules)],
        [name for name in missing if name in frozen or name.rpartition(".")[0] in norms],
        fitting,
    )


def _is_used(name: str, modules: set[str]) -> bool:
    """Whether an unknown name lies in a part of the network that the model has.

    Whole heads that are switched off, and constants that older versions saved, change no
    prediction; anything in the backbone does.
    """
    if name.endswith("num_batches_tracked") or ".anchor_generator." in name:
        return False
    parts = name.split(".")
    return parts[0] == "backbone" or ".".join(parts[:2]) in modules


def _say(names: list[str], what: str) -> list[str]:
    more = ", …" if len(names) > _SHOWN else ""
    return [f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"] if names else []


def _say_shape(name: str, given: Shape, own: Shape) -> str:
    return f"{name}: {given} in the file, {own} in the model"
