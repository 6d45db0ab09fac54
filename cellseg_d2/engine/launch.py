"""A job of several processes: on the GPUs of one machine or of many, or on a processor.

``launch`` starts one process for each rank of this machine and joins them in a process group, NCCL
on GPUs and gloo on a processor; Detectron2's refuses the latter, and shows whichever process failed
last. In ``main`` a rank asks Detectron2's ``comm`` for its place, so any job is shared out alike,
predictions over a folder too::

    def main(args):
        mine = files[comm.get_rank() :: comm.get_world_size()]
        ...

    launch(main, 2, args=(args,), backend=choose_backend("cpu", 2))

A rank that dies ends the job: the launcher notices, ends the others and says which one it was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import signal
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg

from ..config import load_config
from ..errors import ConfigError
from .rank_process import PATIENCE, Job, run_rank

DEFAULT_TIMEOUT = timedelta(hours=2)
"""How long ranks wait for each other: rank 0 reads the data, and scores, while the others wait.

It only bounds what nobody sees, such as another machine that lost its network: a dead process of
this machine is noticed at once, and over gloo so is one of another machine.
"""

# Seconds in which a dead process shows after its peers have lost the connection to it.
_SETTLING = 1.0


class WorkerError(RuntimeError):
    """One process of a job died; the message says which one, and how."""


def launch(
    main: Callable[..., Any],
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple[Any, ...] = (),
    backend: str = "gloo",
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> Any:
    """Run ``main(*args)`` in every process of a job; to be called once on each machine.

    A job of one process runs here, without a process group. Otherwise the processes are started
    anew ("spawn"), so ``main`` is a function of a module, and the arguments can be pickled.

    Args:
        main: what each process runs.
        num_processes: on this machine, as on all others.
        num_machines: that take part.
        machine_rank: of this one, from 0.
        dist_url: where machine 0 listens, tcp://host:port; "auto" is a free port of this machine.
        args: for ``main``.
        backend: "nccl" for a GPU to each process, or "gloo"; see ``choose_backend``.
        timeout: how long a process waits for the others.

    Returns:
        What ``main`` returned, in a job of one process; of several, None.

    Raises:
        ConfigError: for numbers that do not fit each other, or raised by ``main``.
        CellDataError, OSError, FloatingPointError: raised by ``main``, in any of this machine's
            processes.
        WorkerError: for a process that was killed, exited with a status, or raised anything else.
    """
    if num_processes < 1 or num_machines < 1:
        raise ConfigError(
            f"{num_processes} processes on {num_machines} machines; expected at least 1 of each"
        )
    if not 0 <= machine_rank < num_machines:
        raise ConfigError(
            f"machine {machine_rank} of {num_machines}; machines count from 0 to {num_machines - 1}"
        )
    if num_processes * num_machines == 1:
        return main(*args)
    if dist_url == "auto":
        if num_machines > 1:
            raise ConfigError(
                "several machines meet where machine 0 listens: give the same --dist-url "
                "tcp://<address of machine 0>:<free port> on each"
            )
        dist_url = f"tcp://127.0.0.1:{free_port()}"
    job = Job(main, args, num_processes, num_machines, machine_rank, dist_url, backend, timeout)
    with _Workers() as workers:
        workers.start(job)
        workers.wait()
    return None


def choose_backend(device: str, num_processes: int) -> str:
    """Return what several processes talk through: "nccl" on GPUs, "gloo" on a processor.

    Args:
        device: ``MODEL.DEVICE`` of the job.
        num_processes: on this machine.

    Raises:
        ConfigError: for fewer GPUs than processes, or a device that names one GPU for all.
    """
    if not device.startswith("cuda"):
        return "gloo"
    if num_processes > torch.cuda.device_count():
        raise ConfigError(
            f"--num-gpus {num_processes}, but this machine has {torch.cuda.device_count()}; "
            "for processes on the CPU add MODEL.DEVICE cpu"
        )
    if device != "cuda":
        raise ConfigError(
            f"MODEL.DEVICE is {device}; with --num-gpus {num_processes} each process takes a GPU "
            "of its own: use cuda, and CUDA_VISIBLE_DEVICES to say which"
        )
    return "nccl"


def configured_device(config_file: str, options: Sequence[str]) -> str:
    """Return ``MODEL.DEVICE`` as it was asked for.

    ``load_config`` settles for the CPU where there is no CUDA, which is well for one process, but
    who asks for several GPUs is to be told that there are none.

    Args:
        config_file: a YAML file, or "".
        options: keys and values in turn, over the file's.

    Raises:
        ConfigError: for what ``load_config`` refuses.
    """
    load_config(config_file, options)
    device: str = get_cfg().MODEL.DEVICE
    if config_file:
        device = CfgNode.load_yaml_with_base(config_file).get("MODEL", {}).get("DEVICE", device)
    return dict(zip(options[::2], options[1::2], strict=False)).get("MODEL.DEVICE", device)


class _Workers:
    """The processes of one machine; leaving the context ends those that still run."""

    def __init__(self) -> None:
        self._ranks: dict[int, tuple[SpawnProcess, Connection]] = {}

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *error: object) -> None:
        processes = [process for process, _ in self._ranks.values()]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + PATIENCE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def start(self, job: Job) -> None:
        """Start the processes of this machine."""
        context = multiprocessing.get_context("spawn")
        for local_rank in range(job.num_processes):
            rank = job.rank(local_rank)
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(
                target=run_rank, args=(local_rank, job, writer), name=f"rank {rank}"
            )
            process.start()
            writer.close()
            self._ranks[rank] = process, reader

    def wait(self) -> None:
        """Wait until every process has ended well, or raise what the first fault was."""
        running = set(self._ranks)
        while running:
            multiprocessing.connection.wait(
                [item for r in running for item in (self._ranks[r][0].sentinel, self._ranks[r][1])]
            )
            faults = {rank: fault for rank in running if (fault := self._fault(rank))}
            for fault in faults.values():
                if not isinstance(fault, str):
                    raise fault
            if faults:
                # Likely the echo of a peer's death, whose own status is about to show.
                time.sleep(_SETTLING)
            for rank in sorted(running):
                status = self._ranks[rank][0].exitcode
                if status:
                    raise WorkerError(f"the process of rank {rank} {_describe(status)}")
                if status == 0:
                    running.remove(rank)
            for rank, fault in faults.items():
                raise WorkerError(f"the process of rank {rank} failed:\n{fault}")

    def _fault(self, rank: int) -> Exception | str | None:
        """Return what a process has reported: an error of the user's, or a traceback."""
        process, reader = self._ranks[rank]
        try:
            if reader.poll():
                fault: Exception | str = reader.recv()
                return fault
        except EOFError:
            # The process has ended, or is about to.
            process.join(PATIENCE)
        return None


def _describe(status: int) -> str:
    if status > 0:
        return f"exited with status {status}"
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def launch_job(main: Callable[..., Any], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in as many processes as a script's command line asks for.

    Args:
        main: of one process; a function of a module, so that it can be pickled.
        args: ``config_file``, ``opts``, ``num_gpus``, ``num_machines``, ``machine_rank`` and
            ``dist_url``.

    Raises:
        ConfigError: for processes that the machine or the config does not allow.
        WorkerError: where a process died; and whatever ``launch`` hands on.
    """
    backend = "gloo"
    if args.num_gpus * args.num_machines > 1:
        device = configured_device(args.config_file, args.opts)
        backend = choose_backend(device, args.num_gpus)
    machines = (args.num_machines, args.machine_rank, args.dist_url)
    launch(main, args.num_gpus, *machines, args=(args,), backend=backend)
