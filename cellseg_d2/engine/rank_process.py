"""One process of a job of several: it joins the others, runs its share, and reports its faults."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from detectron2.utils import comm

from ..errors import CellDataError, ConfigError

PATIENCE = 10.0
"""Seconds that a process which was told to end gets before it is killed."""

_INTERRUPTED = 130


@dataclass(frozen=True)
class Job:
    """What every process of a job is told; see ``launch`` for the fields."""

    main: Callable[..., Any]
    args: tuple[Any, ...]
    num_processes: int
    num_machines: int
    machine_rank: int
    url: str
    backend: str
    timeout: timedelta

    def rank(self, local_rank: int) -> int:
        """Return the rank in the whole job of this machine's process ``local_rank``."""
        return self.machine_rank * self.num_processes + local_rank


def run_rank(local_rank: int, job: Job, launcher: Connection) -> None:
    """Be one process of a job; the target of a spawned process.

    Args:
        local_rank: of this process among its machine's.
        job: to take part in.
        launcher: where a fault goes: the user's errors as they are, others as their traceback.
    """
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    if job.rank(local_rank) > 0:
        # Until the run's log is set up, only rank 0 speaks.
        logging.getLogger("cellseg_d2").addHandler(logging.NullHandler())
    # Of upstream's comm, which says so in each process.
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
    fault: Exception | str
    try:
        join_group(local_rank, job)
        job.main(*job.args)
        comm.synchronize()
        dist.destroy_process_group()
        end_process()
    except (CellDataError, ConfigError, FloatingPointError) as error:
        fault = error
    except OSError as error:
        # Its kind may not survive pickling; its text does.
        fault = OSError(str(error))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except SystemExit:
        raise
    except BaseException:
        fault = traceback.format_exc()
    launcher.send(fault)
    # Ending now would cut the connections, and the others would fail, loudly, before they are told.
    time.sleep(PATIENCE)
    sys.exit(1)


def end_process() -> NoReturn:
    """End this process well, without taking the interpreter apart.

    Threads of gloo and of autograd may still run, since whatever refers to the process group keeps
    it alive; one that asks for the interpreter while it is being taken apart aborts the process,
    after all its work was done. What was registered to run at the end still runs.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_launcher() -> None:
    """End this process when the launcher has ended, whatever this process is waiting for."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # spawned
    parent.join()
    os._exit(1)


def join_group(local_rank: int, job: Job) -> None:
    """Join the process group, as Detectron2's ``comm`` expects to find it.

    Args:
        local_rank: of this process among its machine's.
        job: to take part in.

    Raises:
        ConfigError: for an address where the processes cannot meet.
    """
    if job.backend == "nccl":
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        # Each process would start a thread for every core.
        torch.set_num_threads(max(1, torch.get_num_threads() // job.num_processes))
    try:
        dist.init_process_group(
            job.backend,
            init_method=job.url,
            world_size=job.num_processes * job.num_machines,
            rank=job.rank(local_rank),
            timeout=job.timeout,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"the processes cannot meet at --dist-url {job.url}: {error}") from error
    for machine in range(job.num_machines):
        first = machine * job.num_processes
        group = dist.new_group(range(first, first + job.num_processes), timeout=job.timeout)
        if machine == job.machine_rank:
            comm._LOCAL_PROCESS_GROUP = group
    # Upstream gathers through a group of its own beside NCCL, which waits for half an hour only.
    gathering = dist.new_group(backend="gloo", timeout=job.timeout)
    comm._get_global_gloo_group = lambda: gathering
    comm.synchronize()
