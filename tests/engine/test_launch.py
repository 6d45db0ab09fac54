"""Jobs of two processes over gloo: they find each other, and every way to fail is told apart."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm

from cellseg_d2 import CellDataError, ConfigError
from cellseg_d2.engine import launch as launching
from cellseg_d2.engine.launch import (
    WorkerError,
    choose_backend,
    configured_device,
    free_port,
    launch,
)
from cellseg_d2.engine.parallel import on_main, parallelize, require_agreement, share_buffers
from cellseg_d2.engine.rank_process import Job, join_group


def in_every_process(folder: Path) -> None:
    """Writes what one rank sees to rank<i>.json."""
    rank = comm.get_rank()
    asked: list[int] = []

    def which() -> int:
        asked.append(rank)
        return 40 + rank

    def refuse() -> None:
        raise CellDataError("x.tif", "nothing", "a file", "add it")

    seen = {
        "place": [rank, comm.get_world_size(), comm.get_local_rank(), comm.get_local_size()],
        "backend": dist.get_backend(),
        "on_main": on_main(which),
        "asked": asked,
    }
    with pytest.raises(CellDataError) as refusal:
        on_main(refuse)
    seen["refusal"] = str(refusal.value)
    require_agreement("everything", ("a", 1))
    with pytest.raises(ConfigError) as difference:
        require_agreement("rank", rank)
    seen["difference"] = str(difference.value)

    # Each rank has weights and statistics of its own before.
    torch.manual_seed(rank)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    wrapped = parallelize(model)
    seen["weights"] = model[0].weight.tolist()
    (wrapped(torch.ones(3, 2)) * (rank + 1)).sum().backward()
    seen["gradient"] = model[1].bias.grad.tolist()
    model[1].running_mean.fill_(rank + 5)
    share_buffers(model)
    seen["running_mean"] = model[1].running_mean.tolist()
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))


@pytest.mark.slow
def test_two_machines_of_one_process_work_together(tmp_path: Path) -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    machines = [
        threading.Thread(target=launch, args=(in_every_process, 1, 2, machine, url, (tmp_path,)))
        for machine in range(2)
    ]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join()
    seen = [json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2)]
    assert [s.pop("place") for s in seen] == [[0, 2, 0, 1], [1, 2, 0, 1]]
    assert [s.pop("asked") for s in seen] == [[0], []]
    assert seen[0] == seen[1]
    assert seen[0]["backend"] == "gloo"
    assert seen[0]["on_main"] == 40
    assert seen[0]["refusal"] == "x.tif: found nothing; expected a file; add it"
    assert "0 on rank 0, 1 on rank 1" in seen[0]["difference"]
    # d(sum over 3 rows of (rank + 1) · output) / d bias is 3 and 6, whose mean is 4.5.
    assert seen[0]["gradient"] == [4.5, 4.5]
    assert seen[0]["running_mean"] == [5.0, 5.0]


class AbortsWithInterpreter:
    """Stands for a thread that is still alive when the interpreter is taken apart."""

    def __del__(self, abort: Callable[[], None] = os.abort) -> None:
        abort()


def leave_things_to_the_end(folder: Path) -> None:
    """Leaves what aborts at the interpreter's end, and writes what is registered for it."""
    sys.left_behind = AbortsWithInterpreter()
    rank = comm.get_rank()
    atexit.register((folder / f"end{rank}").write_text, "registered")
    # Kept in a buffer, unlike what a terminal gets.
    sys.stdout = (folder / f"out{rank}").open("w")
    print("printed")


@pytest.mark.slow
def test_a_process_ends_well_whatever_is_still_alive(tmp_path: Path) -> None:
    launch(leave_things_to_the_end, 2, args=(tmp_path,))
    for rank in range(2):
        assert (tmp_path / f"end{rank}").read_text() == "registered"
        assert (tmp_path / f"out{rank}").read_text() == "printed\n"


def fail(folder: Path, how: str) -> None:
    """Rank 1 fails; rank 0 waits for it in a collective call, and would for an hour."""
    (folder / f"pid{comm.get_rank()}").write_text(str(os.getpid()))
    if comm.get_rank() == 0:
        comm.synchronize()
    comm.synchronize()
    if how == "data":
        raise CellDataError("image.tif", "half a file", "all of it", "copy it again")
    if how == "bug":
        raise ZeroDivisionError("a bug")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)


FAILURES = {
    "data": (CellDataError, "image.tif: found half a file; expected all of it; copy it again"),
    "bug": (WorkerError, "rank 1 failed:\nTraceback"),
    "kill": (WorkerError, "rank 1 was killed by SIGKILL"),
}


def has_ended(pid: int) -> bool:
    try:
        # The state follows the name in brackets; Z has ended and waits for somebody to ask how.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("how", FAILURES)
def test_a_process_that_fails_ends_the_job(how: str, tmp_path: Path, capfd) -> None:
    kind, message = FAILURES[how]
    with pytest.raises(kind) as error:
        launch(fail, 2, args=(tmp_path, how), timeout=timedelta(hours=1))
    assert message in str(error.value)
    assert "rank 0" not in str(error.value)
    assert has_ended(int((tmp_path / "pid0").read_text()))
    assert "Traceback" not in capfd.readouterr().err, "rank 0 complains of the lost connection"


@pytest.mark.slow
def test_processes_end_when_their_launcher_is_killed(tmp_path: Path) -> None:
    launcher = multiprocessing.get_context("spawn").Process(
        target=launch, args=(fail, 2), kwargs={"args": (tmp_path, "wait")}
    )
    launcher.start()
    files = [tmp_path / f"pid{rank}" for rank in range(2)]
    while not all(file.exists() and file.read_text() for file in files):
        assert launcher.is_alive()
        time.sleep(0.1)
    launcher.kill()
    launcher.join()
    deadline = time.monotonic() + 60
    while not all(has_ended(int(file.read_text())) for file in files):
        assert time.monotonic() < deadline, "a process outlived its launcher by a minute"
        time.sleep(0.1)


def test_one_process_runs_here_and_answers() -> None:
    assert launch(os.getpid, 1) == os.getpid()
    assert launch(max, 1, args=(2, 3)) == 3


def test_one_process_has_nobody_to_share_with() -> None:
    model = torch.nn.Linear(1, 1)
    assert parallelize(model) is model
    share_buffers(model)
    assert on_main(lambda: 3) == 3
    require_agreement("anything", object())


@pytest.mark.parametrize("url", ["tcp://nowhere", "localhost:29500"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    job = Job(in_every_process, (), 1, 2, 0, url, "gloo", timedelta(seconds=5))
    with pytest.raises(ConfigError, match=f"cannot meet at --dist-url {url}"):
        join_group(0, job)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1, 0), "0 processes"),
        ((1, 0, 0), "0 machines"),
        ((1, 2, 2), "from 0 to 1"),
        ((1, 2, -1), "from 0 to 1"),
        ((1, 2, 0), "--dist-url tcp://<address of machine 0>"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(numbers: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        launch(os.getpid, *numbers)


def test_backend_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching.torch.cuda, "device_count", lambda: 2)
    assert choose_backend("cpu", 64) == "gloo"
    assert choose_backend("cuda", 2) == "nccl"
    with pytest.raises(ConfigError, match="--num-gpus 3, but this machine has 2.*MODEL.DEVICE cpu"):
        choose_backend("cuda", 3)
    with pytest.raises(ConfigError, match="cuda:1.*CUDA_VISIBLE_DEVICES"):
        choose_backend("cuda:1", 2)


def test_device_is_the_one_asked_for(tmp_path: Path, repository: Path) -> None:
    base = repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml"
    saved = tmp_path / "config.yaml"
    saved.write_text("MODEL:\n")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        configured_device(str(saved), [])
    saved.write_text("MODEL:\n  DEVICE: cpu\n")
    assert configured_device("", []) == "cuda"
    assert configured_device(str(base), ["SEED", "1"]) == "cuda"
    assert configured_device(str(saved), []) == "cpu"
    assert configured_device(str(saved), ["MODEL.DEVICE", "cuda"]) == "cuda"
    assert configured_device(str(base), ["MODEL.DEVICE", "cpu", "SEED", "1"]) == "cpu"
