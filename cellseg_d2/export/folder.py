"""A folder of images predicted by one process or by several, and its submission."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from detectron2.structures import Instances
from detectron2.utils import comm
from tqdm import tqdm

from ..data.image_dicts import raise_faults
from ..engine.parallel import on_main
from ..errors import CellDataError
from ..machine_faults import explain_disk
from .image_outputs import ImageOutputs
from .parts import Parts
from .submission import remove_submission, write_submission

logger = logging.getLogger(__name__)

_GO_ON = "the same command goes on with the images that are missing"


class Predictor(Protocol):
    """What finds the cells of an image file; ``inference.CellPredictor`` does."""

    def stream(self, path: str | PathLike[str]) -> Iterator[Instances]:
        """Yield an image's answer part by part."""


def predict_folder(
    dicts: Sequence[dict[str, Any]],
    make_predictor: Callable[[], Predictor],
    outputs: ImageOutputs,
    parts: Parts,
    output_dir: str | PathLike[str],
) -> tuple[Path, Path]:
    """Predict images and write their submission, holding one image's answer at a time.

    In a job of several processes each takes its share of the images, and all call this together.
    Images that an interrupted run has finished are not predicted again. An image that cannot be
    read does not keep the others from being predicted, but there is no submission without it.

    Args:
        dicts: of the images, in the order of the submission.
        make_predictor: called where an image of this process's share is missing.
        outputs: writes an image's files.
        parts: the finished answers; removed once the submission is written.
        output_dir: folder of the submission; one of a former run is removed when the first image
            is predicted.

    Returns:
        The paths of ``test-results.json`` and ``test-results.zip``.

    Raises:
        CellDataError: images cannot be read; it names them all, on every process. Before anything
            is predicted, outputs of a former run that would be left (``refuse_leftovers``).
        MachineError: files cannot be written.
    """
    on_main(lambda: outputs.refuse_leftovers(dicts))
    share = dicts[comm.get_rank() :: comm.get_world_size()]
    missing = [item for item in share if not outputs.are_done(item)]
    if len(missing) < len(share):
        done = len(share) - len(missing)
        logger.info("%d of %d images were finished by a former run", done, len(share))
    faults: list[CellDataError] = []
    # A former submission goes before the first of its images is replaced.
    if any(comm.all_gather(bool(missing))):
        on_main(lambda: remove_submission(output_dir))
    if missing:
        with explain_disk(output_dir, _GO_ON):
            faults = _predict_missing(missing, make_predictor, outputs)
    # Those who are done first wait here, for as long as the launcher allows.
    comm.synchronize()
    faults = [fault for of_rank in comm.all_gather(faults) for fault in of_rank]
    if faults:
        logger.error(
            "No submission: %d of %d images cannot be read. The answers to the others are kept in "
            "%s; run the command again when these are repaired or moved away.",
            len(faults),
            len(dicts),
            parts.folder,
        )
        raise_faults(os.path.commonpath([os.path.abspath(f.path) for f in faults]), faults)
    with explain_disk(output_dir, _GO_ON):
        written = on_main(lambda: write_submission(map(parts.entries, dicts), output_dir))
        on_main(parts.remove)
    return written


def _predict_missing(
    missing: Sequence[dict[str, Any]],
    make_predictor: Callable[[], Predictor],
    outputs: ImageOutputs,
) -> list[CellDataError]:
    """Predict images one after the other; return the errors of those that cannot be read."""
    predictor = make_predictor()
    faults: list[CellDataError] = []
    bar = tqdm(missing, unit="image", disable=None if comm.is_main_process() else True)
    for item in bar:
        try:
            outputs.write(item, predictor.stream(item["file_name"]))
        except CellDataError as fault:
            logger.error("%s", fault)
            faults.append(fault)
    return faults
