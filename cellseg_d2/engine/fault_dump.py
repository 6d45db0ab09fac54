"""What a run that met a NaN or an infinity leaves behind: a message, and a file that repeats it.

The file holds the model's state before the update, the batch as the model got it, its random seed
and the config. It is tensors, numbers and strings only, so that it is read without running anything
in it; ``fault_replay.replay`` computes it again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from ..checkpoint.files import read_tensors, replace_file
from ..errors import CellDataError
from ..structures import LabelMasks

logger = logging.getLogger(__name__)

LOSS, GRADIENT, FORWARD = "a loss", "the gradient", "the forward pass"
"""What can turn out not to be finite."""

_FORMAT = "cellseg_d2 fault 1"


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is not finite; the message says where, and what reproduces it."""


@dataclass(frozen=True)
class StreamBatch:
    """A batch and its place.

    Attributes:
        number: in the stream of batches, from 0.
        seed: of the model's random numbers, 32 bits.
        positions: of the samples in the stream of images.
        samples: as the loader gave them: dicts, as ``CellDatasetMapper`` makes them.
    """

    number: int
    seed: int
    positions: tuple[int, ...]
    samples: Any


@dataclass(frozen=True)
class Fault:
    """What was found in one iteration.

    Attributes:
        iteration: from 0.
        what: is not finite: ``LOSS``, ``GRADIENT`` or ``FORWARD``.
        batches: those at fault; for a gradient, all that it was computed from.
        losses: of each batch by name; empty where there are none.
        detail: what else is known.
    """

    iteration: int
    what: str
    batches: list[StreamBatch]
    losses: list[dict[str, float]]
    detail: str = ""


def describe_fault(fault: Fault) -> str:
    """Return the iteration, the losses by name and the images, as lines of text."""
    detail = f" ({fault.detail})" if fault.detail else ""
    lines = [f"iteration {fault.iteration}: {fault.what} is not finite{detail}"]
    for batch, losses in zip(fault.batches, fault.losses, strict=True):
        named = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        lines.append(f"  batch {batch.number}: {named or 'no loss'}")
        for position, name in zip(batch.positions, _image_names(batch.samples), strict=True):
            lines.append(f"    position {position}: {name}")
    return "\n".join(lines)


class FaultDump:
    """Writes ``nonfinite_<iteration>.pth`` into a folder.

    Args:
        folder: of the run.
        cfg: the run's config, from which the model can be built again.
    """

    def __init__(self, folder: str | PathLike[str], cfg: CfgNode) -> None:
        self.folder = Path(folder)
        self.cfg = cfg

    def write(self, fault: Fault, model: torch.nn.Module, amp: torch.dtype | None = None) -> str:
        """Write the file, whole or not at all.

        Args:
            fault: what was found.
            model: with the weights it was found with.
            amp: what was computed in, see ``TrainStep``.

        Returns:
            What the run is to be stopped with: the fault, and how to repeat it.

        Raises:
            OSError: where the file cannot be written; the message begins with the fault.
        """
        rank = comm.get_rank()
        suffix = f"_rank{rank}" if rank else ""
        path = self.folder / f"nonfinite_{fault.iteration:07d}{suffix}.pth"
        content = {
            "format": _FORMAT,
            "iteration": fault.iteration,
            "what": fault.what,
            "detail": fault.detail,
            "amp": str(amp).removeprefix("torch.") if amp else "",
            "config": self.cfg.dump(),
            "losses": fault.losses,
            "batches": [
                {
                    "number": batch.number,
                    "seed": batch.seed,
                    "positions": list(batch.positions),
                    "samples": [pack_sample(sample) for sample in batch.samples],
                }
                for batch in fault.batches
            ],
            "model": model.state_dict(),
        }
        message = describe_fault(fault)
        try:
            with replace_file(path) as file:
                torch.save(content, file)
        except (OSError, RuntimeError) as error:  # torch.save may hide the former behind the latter
            raise OSError(f"{message}\n{path} could not be written: {error}") from error
        return (
            f"{message}\nThe weights are those before this iteration; nothing was saved after it.\n"
            f"To compute it again: python tools/replay_fault.py {path}"
        )


def read_fault(path: str | PathLike[str]) -> dict[str, Any]:
    """Read what ``FaultDump`` wrote.

    Args:
        path: of the file.

    Returns:
        ``iteration``, ``what``, ``detail``, ``amp`` (name of the dtype or ""), ``config`` (YAML),
        ``losses``, ``model`` (state) and ``batches``, each with its ``samples`` as the model takes
        them.

    Raises:
        CellDataError: for a file that is no such dump.
    """
    content = read_tensors(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CellDataError(
            path,
            "another kind of file",
            "a nonfinite_<iteration>.pth that a training left",
            "name that file, in the run's output folder",
        )
    for batch in content["batches"]:
        batch["samples"] = [unpack_sample(sample) for sample in batch["samples"]]
    return content


def pack_sample(sample: Any) -> Any:
    """Return a sample with its instances as plain tensors; what is no dict stays as it is."""
    if not isinstance(sample, Mapping):
        return sample
    packed = dict(sample)
    instances = packed.get("instances")
    if isinstance(instances, Instances):
        masks = instances.gt_masks
        packed["instances"] = {
            "image_size": list(instances.image_size),
            "gt_boxes": instances.gt_boxes.tensor,
            "gt_classes": instances.gt_classes,
            "label_maps": masks.label_maps,
            "layers": masks.layers,
            "ids": masks.ids,
        }
    return packed


def unpack_sample(packed: Any) -> Any:
    """Undo ``pack_sample``."""
    if not isinstance(packed, Mapping) or "instances" not in packed:
        return packed
    fields = packed["instances"]
    height, width = fields["image_size"]
    instances = Instances(
        (height, width),
        gt_boxes=Boxes(fields["gt_boxes"]),
        gt_classes=fields["gt_classes"],
        gt_masks=LabelMasks(fields["label_maps"], fields["layers"], fields["ids"]),
    )
    return {**packed, "instances": instances}


def _image_names(samples: Any) -> list[str]:
    return [
        str(sample.get("file_name", "unnamed")) if isinstance(sample, Mapping) else "unnamed"
        for sample in samples
    ]
