"""What a machine does to a run, in words that say what to change: memory, loader workers, disk."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath

import torch
from detectron2.config import CfgNode

from .errors import MachineError

# Of the CPU's allocator, cuDNN and cuBLAS: plain RuntimeErrors, told by their text alone.
_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator: (can't|not enough)|(CUDNN|CUBLAS)_STATUS_ALLOC_FAILED|out of memory"
)
# Seconds in which a dead worker shows after a connection to it has broken.
_SETTLING = 2.0
_DEAD_WORKER = re.compile(r"DataLoader worker .*(killed|exited)|worker .*exited unexpectedly")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the GPU's or the machine's memory is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


@contextmanager
def explain_training_memory(cfg: CfgNode) -> Iterator[None]:
    """Name, where a training step finds too little memory, the keys that decide on it.

    Args:
        cfg: of the training.

    Raises:
        MachineError: in place of the error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        crop = cfg.INPUT.CROP
        smaller = (
            f"INPUT.CROP.SIZE (now {list(crop.SIZE)})"
            if crop.ENABLED
            else "the images, by INPUT.CROP.ENABLED True and INPUT.CROP.SIZE"
        )
        raise MachineError(
            f"a training step does not fit into memory ({_first_line(error)}); lower "
            f"SOLVER.IMS_PER_BATCH (now {cfg.SOLVER.IMS_PER_BATCH}; twice the SOLVER.ACCUMULATE "
            f"makes up for half of it) or {smaller}, and go on with --resume"
        ) from error


@contextmanager
def explain_run_faults(cfg: CfgNode) -> Iterator[None]:
    """Say what to do where the machine stops a training or an evaluation.

    A worker of a data loader that dies shows wherever the main process happens to be: PyTorch
    raises from a signal handler. So this belongs around the whole run.

    Args:
        cfg: of the run.

    Raises:
        MachineError: in place of an error of a dead worker, of memory (outside of training steps,
            see ``explain_training_memory``), or of a disk that takes no more.
    """
    try:
        with explain_disk(cfg.OUTPUT_DIR, "the same command with --resume goes on from there"):
            yield
    except (RuntimeError, MemoryError, ConnectionError, EOFError) as error:
        cause = _told_by_pytorch(error)
        if _DEAD_WORKER.search(str(cause)):
            raise MachineError(
                f"a process that loads images died ({_first_line(cause)}); most often the "
                "machine's memory is used up: lower DATALOADER.NUM_WORKERS (now "
                f"{cfg.DATALOADER.NUM_WORKERS}; 0 loads in the main process) and go on with "
                "--resume"
            ) from error
        if not is_out_of_memory(error):
            raise
        raise MachineError(
            "the model, or an evaluation of whole images, does not fit into memory "
            f"({_first_line(error)}); lower MODEL.RPN.POST_NMS_TOPK_TEST (now "
            f"{cfg.MODEL.RPN.POST_NMS_TOPK_TEST}), hold out smaller images "
            "(DATASETS.CELL.VAL_NAMES), or train without evaluation (DATASETS.TEST ())"
        ) from error


# Where a file cannot be opened, the system's message names it and says why.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


@contextmanager
def explain_disk(folder: str | PathLike[str], what_next: str) -> Iterator[None]:
    """Say of a system's error in writing what was written to, and how to go on.

    Args:
        folder: that is written to.
        what_next: once there is room, as half a sentence.

    Raises:
        MachineError: in place of the system's error for a full, failing or read-only disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise MachineError(
            f"{fspath(folder)}: cannot be written to ({error}); what was finished before is "
            f"there. Make room, or allow writing there; {what_next}"
        ) from error


def _told_by_pytorch(error: BaseException) -> BaseException:
    """Return what PyTorch says of a worker that breaks a connection by dying, else the error.

    The connection breaks a moment before the signal comes by which PyTorch notices.
    """
    if isinstance(error, ConnectionError | EOFError):
        try:
            time.sleep(_SETTLING)
        except RuntimeError as death:  # raised from the signal's handler
            return death
    return error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
