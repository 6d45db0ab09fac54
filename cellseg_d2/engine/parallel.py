"""What the processes of one job do together; with one process, nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from ..errors import CellDataError, ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")


def parallelize(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model, which in a job of several processes averages its gradients over them.

    Detectron2's ``create_ddp_model`` names a GPU also where there is none. Buffers are each
    process's own while it trains, as upstream's; see ``share_buffers``.

    Args:
        model: on its device. All processes start from rank 0's weights.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).device.type == "cuda"
    return DistributedDataParallel(
        model, device_ids=[torch.cuda.current_device()] if on_gpu else None, broadcast_buffers=False
    )


def share_buffers(model: torch.nn.Module) -> None:
    """Give every process rank 0's buffers, the running statistics of BatchNorm.

    They are those that a checkpoint holds: each process that evaluates a share of the images is to
    evaluate the model that is saved. All processes call this together.

    Args:
        model: changed in place on all ranks but 0.
    """
    if comm.get_world_size() == 1:
        return
    with torch.no_grad():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def on_main(function: Callable[[], T]) -> T:
    """Call a function on the main process alone; return its answer on every one.

    What only one process may do (write a file) or need do (read all images) goes through here. All
    processes call this together.

    Args:
        function: whose answer can be pickled.

    Raises:
        CellDataError, ConfigError: on every process, where the function raised it.
    """
    if comm.get_world_size() == 1:
        return function()
    message: tuple[Any, CellDataError | ConfigError | None] = (None, None)
    if comm.is_main_process():
        try:
            message = (function(), None)
        except (CellDataError, ConfigError) as error:
            message = (None, error)
    # The others wait here, for as long as the launcher allows; gathering may have less patience.
    comm.synchronize()
    answer, fault = comm.all_gather(message)[0]
    if fault is not None:
        raise fault
    return answer


def require_agreement(what: str, value: Any) -> None:
    """Refuse to go on where the processes hold different values. All call this together.

    Args:
        what: the value is, for the message.
        value: of this process; can be pickled and compared.

    Raises:
        ConfigError: on every process.
    """
    values = comm.all_gather(value)
    if any(other != values[0] for other in values):
        listed = ", ".join(f"{other} on rank {rank}" for rank, other in enumerate(values))
        raise ConfigError(
            f"the processes differ in {what} ({listed}); all machines need the same data and the "
            "same OUTPUT_DIR, best on a shared disk"
        )


def log_processes(device: str) -> None:
    """Say in the log how many processes share the job, and what each runs on.

    Args:
        device: ``MODEL.DEVICE``.
    """
    if comm.get_world_size() > 1:
        logger.info(
            "%d processes, %d of them on this machine, over %s; each on %s",
            comm.get_world_size(),
            comm.get_local_size(),
            dist.get_backend(),
            "a GPU of its own" if device.startswith("cuda") else "the CPU, for lack of a GPU to it",
        )
