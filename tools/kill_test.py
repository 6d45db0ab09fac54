#!/usr/bin/env python
"""Kill trainings and predictions at random moments, go on with them, and compare what they leave.

python tools/kill_test.py --kills 50 --seed 0

Data and model are tiny and made for it. First a training and a prediction are let run to their
ends. Then, over and over, each is started, ended by SIGKILL after a random time, looked at, and
started again by the same command, until it ends by itself. After each kill

- every file under its final name must be whole (weights load, JSON, PNG and TIFF can be read), and
  what a prediction has finished must be the uninterrupted one's to the byte;
- nothing may be lost: the last checkpoint is no older than before, its rows of metrics are there,
  and images that were finished are not predicted again.

At the end weights, optimizer, metrics and scores must be those of the uninterrupted training bit
for bit, submission, labels, outlines, tables and overlays those of the uninterrupted prediction
byte for byte, and no half file may be left.

Exit status: 0 if all of that holds, 1 if not, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from killing.files import Difference
from killing.jobs import Job, prediction, training

from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset


def run(job: Job, folder: Path, kill_after: float | None = None) -> tuple[bool, float]:
    """Run a job in a process of its own.

    Args:
        job: to run.
        folder: it writes to; what it prints goes to a file beside.
        kill_after: seconds of the processor until it is killed; None to let it be.

    Returns:
        Whether it was killed, and the seconds of the processor that it took.

    Raises:
        Difference: where it ends by itself with another status than 0.
    """
    log = folder.with_name(f"{folder.name}.log")
    child = os.fork()
    if not child:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        status = 99
        try:
            status = job.start(folder)
        finally:
            os._exit(status)
    pause = random.uniform(0.0, 0.02)  # the clock of a process ticks every 10 ms
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if kill_after is not None and processor_seconds(child) >= kill_after:
            time.sleep(pause)
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            break
        time.sleep(0.005)
    seconds = usage.ru_utime + usage.ru_stime
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True, seconds
    if status:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise Difference(f"{folder}: ended with status {os.waitstatus_to_exitcode(status)}\n{tail}")
    return False, seconds


def processor_seconds(process: int) -> float:
    """Seconds of the processor that a running child has taken, of Linux's /proc."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill_again_and_again(
    job: Job, kills: int, rng: random.Random, folder: Path
) -> tuple[int, list[str]]:
    """Kill runs of a job until they were killed so often; each is gone on with to its end.

    Returns:
        How many runs there were, and what was found.
    """
    faults: list[str] = []
    done = runs = 0
    while done < kills:
        runs += 1
        output = folder / f"{job.name}{runs:03d}"
        reached: Any = None
        try:
            while run(job, output, rng.uniform(0, job.seconds) if done < kills else None)[0]:
                done += 1
                now = job.inspect(output)
                print(f"{job.name} {runs}: kill {done}, {describe(now)}", flush=True)
                if reached is not None and now is not None and not reached <= now:
                    raise Difference(f"{output}: {describe(reached)} became {describe(now)}")
                reached = now
            job.compare(output)
        except Difference as difference:
            faults.append(str(difference))
            print(f"FAULT {difference}", flush=True)
        else:
            shutil.rmtree(output)
    return runs, faults


def describe(reached: Any) -> str:
    """How far a run is, for a person."""
    if reached is None:
        return "complete"
    if isinstance(reached, int):
        return f"saved up to iteration {reached}" if reached >= 0 else "nothing saved"
    return f"{len(reached)} images finished"


def run_test(work: Path, kills: int, seed: int, workers: int) -> list[str]:
    """Run the whole test in a folder; return what was found."""
    rng = random.Random(seed)
    torch.set_num_threads(1)
    data = SyntheticParameters(train=6, test=8, size=(56, 64), cells=(3, 6))
    write_dataset(work / "data", data)
    faults: list[str] = []
    train_job = training(work, workers)
    jobs = [train_job, prediction(work, work / "training" / "model_final.pth")]
    for_prediction = round(0.3 * kills)
    for job, number in zip(jobs, (kills - for_prediction, for_prediction), strict=True):
        _, job.seconds = run(job, work / job.name)
        job.compare(work / job.name)
        print(f"{job.name}: {job.seconds:.1f} s of the processor without a kill", flush=True)
        runs, found = kill_again_and_again(job, number, rng, work)
        faults += found
        print(f"{job.name}: {number} kills in {runs} runs, {len(found)} faults", flush=True)
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kills", type=int, default=50, metavar="N", help="in all, about 7 of 10 of training (50)")
    add("--seed", type=int, default=0, metavar="S", help="of the moments (0)")
    add("--workers", type=int, default=0, metavar="W", help="loader processes of training (0)")
    add("--keep", type=Path, metavar="DIR", help="work here, and leave what differs")
    args = parser.parse_args(arguments)
    if args.kills < 1 or args.workers < 0:
        parser.error("--kills is at least 1, --workers at least 0")
    with tempfile.TemporaryDirectory() as folder:
        work = args.keep or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        faults = run_test(work, args.kills, args.seed, args.workers)
    for fault in faults:
        print(f"FAULT {fault}", file=sys.stderr)
    print(f"{args.kills} kills, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
