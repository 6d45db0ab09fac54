"""What is said of memory, dead workers and full disks, and what is left alone."""

from __future__ import annotations

import errno
import os
import pickle
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from cellseg_d2 import load_config
from cellseg_d2.errors import MachineError
from cellseg_d2.machine_faults import explain_disk, explain_run_faults, explain_training_memory

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nMore text")


def test_a_training_step_names_batch_and_crop() -> None:
    cfg = load_config(options=["SOLVER.IMS_PER_BATCH", 6, "INPUT.CROP.ENABLED", True])
    cfg.INPUT.CROP.SIZE = [700, 800]
    with pytest.raises(MachineError) as caught, explain_training_memory(cfg):
        raise OUT_OF_MEMORY
    message = str(caught.value)
    for text in ("SOLVER.IMS_PER_BATCH (now 6;", "INPUT.CROP.SIZE (now [700, 800])", "20 MiB"):
        assert text in message
    assert "More text" not in message and caught.value.__cause__ is OUT_OF_MEMORY


def test_without_crops_a_training_step_names_how_to_crop() -> None:
    cfg = load_config(options=["INPUT.CROP.ENABLED", False])
    with pytest.raises(MachineError, match="INPUT.CROP.ENABLED True"), explain_training_memory(cfg):
        raise MemoryError


def test_an_evaluation_names_what_decides_there() -> None:
    cfg = load_config()
    with pytest.raises(MachineError, match="POST_NMS_TOPK_TEST"), explain_run_faults(cfg):
        raise OUT_OF_MEMORY
    # What a step has explained is not explained anew.
    with (
        pytest.raises(MachineError, match="a training step does not fit"),
        explain_run_faults(cfg),
        explain_training_memory(cfg),
    ):
        raise OUT_OF_MEMORY


class Suicidal(Dataset):
    """The worker that loads item 3 is killed, as the system does when memory is short.

    Tensors still on their way from it then break a connection, now and then.
    """

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1000)


def test_a_dead_worker_is_told_as_pytorch_tells_it() -> None:
    cfg = load_config(options=["DATALOADER.NUM_WORKERS", 2])
    with pytest.raises(MachineError) as caught, explain_run_faults(cfg):
        list(DataLoader(Suicidal(), num_workers=1))
    assert "lower DATALOADER.NUM_WORKERS (now 2" in str(caught.value)
    assert "--resume" in str(caught.value)


@pytest.mark.parametrize("broken", [ConnectionResetError(104, "reset"), EOFError()])
def test_a_broken_connection_waits_for_the_death(broken: Exception) -> None:
    def tell(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    before = signal.signal(signal.SIGALRM, tell)
    try:
        with (
            pytest.raises(MachineError, match=r"pid 7\) is killed"),
            explain_run_faults(load_config()),
        ):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            raise broken
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_names_the_folder(number: int) -> None:
    with pytest.raises(MachineError) as caught, explain_disk("out/run", "give it again"):
        raise OSError(number, os.strerror(number))
    message = str(caught.value)
    assert message.startswith("out/run: cannot be written to") and "give it again" in message
    assert os.strerror(number) in message


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "x.pth"),
        OSError("model.pth: the disk does not take the file; make room"),
        ValueError("no space left"),
        RuntimeError("shape mismatch"),
        ConnectionRefusedError(111, "refused"),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explain_run_faults(load_config()):
        raise error
    assert caught.value is error


def test_the_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(MachineError("no memory; do less")))
    assert isinstance(error, OSError) and str(error) == "no memory; do less"
