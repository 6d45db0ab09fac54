"""Training step and prediction against stock Detectron2 and torchvision.

Same weights, same images, same batch, each side in processes of its own. Sides take turns, so that
a change in the machine's load meets all. Peak memory is that of a process that runs one task, less
that of one which has imported and built the same and runs nothing. Stock Detectron2 has to give the
same losses and the same run-length codes; torchvision's model has the same weights and differs from
it by design, as ``cellseg_d2.checkpoint.convert`` lists.
"""

from __future__ import annotations

import pickle
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellseg_d2.modeling.cell_rcnn import rescale_to_rles

from .sides.case import LARGE, SMALL, Case, write
from .sides.parts import DATA, ENCODING, POSTPROCESSING, TARGETS
from .sides.worker import Worker
from .timing import Comparison, Figure

# Where an image of this side holds more cells, they are smaller: 1,000 are 16 px across.
CASES = [Case(SMALL, cells, side=512, images=2, rounds=5) for cells in (50, 300)]
CASES += [
    Case(SMALL, 1000, side=512, images=2, rounds=3),
    Case(LARGE, 300, side=320, images=1, rounds=3),
]
REFERENCES = {"stock": "stock Detectron2", "vision": "torchvision"}
SIDES = ("ours", *REFERENCES)
NAMES = {"train": "training step", "predict": "prediction", "targets": "data, targets and losses"}
REST = {"train": "network and update", "predict": "network"}
LOADED_GOAL, LOADED_MEMORY_GOAL = 2, 3
"""At 1,000 cells: how much faster the data, targets and losses are, and in what part of the memory
."""


@dataclass
class Measured:
    """What the runs of one side took: medians of seconds, and of each part's; MiB at most."""

    seconds: float
    parts: dict[str, float]
    memory: float
    result: Any


def run() -> Iterator[Comparison | Figure]:
    """Yield each result as it is measured, on the CPU and, where there is one, on the GPU."""
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for case in CASES:
            yield from measure(case, device)


def measure(case: Case, device: str) -> Iterator[Comparison | Figure]:
    """Yield the results of one case."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(case, folder)
        idle = {}
        for side in SIDES:
            with Worker(side, folder, device, torch.get_num_threads()) as worker:
                idle[side] = worker.memory()
        results = {task: take_turns(case, task, folder, device, idle) for task in NAMES}
    check_equal(case, results)
    title = f"R-{case.depth}-FPN, {case.cells:,} cells, {case.images} x {case.side}x{case.side}"
    title += f", {device}"
    for reference, reference_name in REFERENCES.items():
        for task in REST:
            yield comparison(title, NAMES[task], reference_name, results[task], reference)
        yield loaded(case, title, reference_name, results, reference)
    for task, rest in REST.items():
        for side in SIDES:
            yield split(f"{title}: {NAMES[task]}, {side}", results[task][side], rest)


def take_turns(
    case: Case, task: str, folder: Path, device: str, idle: dict[str, float]
) -> dict[str, Measured]:
    """Run a task once to warm up and ``case.rounds`` times to measure, the sides in turn."""
    with ExitStack() as stack:
        workers = {
            side: stack.enter_context(Worker(side, folder, device, torch.get_num_threads()))
            for side in SIDES
        }
        first = {side: worker.run(task) for side, worker in workers.items()}
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(case.rounds):
            for side, worker in workers.items():
                runs[side].append(worker.run(task))
        memory = {side: worker.memory() - idle[side] for side, worker in workers.items()}
        if task == "predict":
            check_codes(workers["stock"], folder / "postprocessed.pkl")
    return {
        side: Measured(
            statistics.median(run["seconds"] for run in runs[side]),
            {
                part: statistics.median(run["parts"].get(part, 0.0) for run in runs[side])
                for part in runs[side][0]["parts"]
            },
            memory[side],
            first[side]["result"],
        )
        for side in SIDES
    }


def check_codes(stock: Worker, path: Path) -> None:
    """Assert that our post-processing gives the same bytes for what stock's network gave out."""
    stock.call("save_postprocessed", path)
    raw, expected = pickle.loads(path.read_bytes())
    for instances, rles in zip(raw, expected, strict=True):
        found = rescale_to_rles(instances, *instances.image_size).pred_masks.rles
        if found != rles:
            raise AssertionError("the run-length codes differ from stock Detectron2's")


def check_equal(case: Case, results: dict[str, dict[str, Measured]]) -> None:
    """Assert equal losses and scores on the two sides that are one model."""
    losses = [results["train"][side].result for side in SIDES]
    if not np.isfinite(losses).all() or not np.isclose(losses[0], losses[1], rtol=1e-4):
        raise AssertionError(f"total losses of {SIDES}: {losses}")
    found = [results["predict"][side].result for side in SIDES]
    for side, answer in zip(SIDES, found, strict=True):
        if answer["rles"] != [case.cells] * case.images:
            raise AssertionError(f"{side}: {answer['rles']} cells in place of {case.cells}")
    if not np.allclose(found[0]["scores"], found[1]["scores"], rtol=0, atol=1e-4):
        raise AssertionError("the scores differ from stock Detectron2's")


def comparison(
    title: str, task: str, reference_name: str, sides: dict[str, Measured], reference: str
) -> Comparison:
    """Return a whole step: never slower."""
    return Comparison(
        f"{title}: {task}",
        reference_name,
        sides[reference].seconds,
        sides["ours"].seconds,
        goal=1,
        reference_memory=sides[reference].memory,
        our_memory=sides["ours"].memory,
    )


def loaded(
    case: Case,
    title: str,
    reference_name: str,
    results: dict[str, dict[str, Measured]],
    reference: str,
) -> Comparison:
    """Return what of a training step grows with the cells: its time, and its memory by itself."""
    train, alone = results["train"], results["targets"]
    dense = case.cells >= 1000
    return Comparison(
        f"{title}: {NAMES['targets']}",
        reference_name,
        sum(train[reference].parts[part] for part in (DATA, TARGETS)),
        sum(train["ours"].parts[part] for part in (DATA, TARGETS)),
        goal=LOADED_GOAL if dense else 1,
        reference_memory=alone[reference].memory,
        our_memory=alone["ours"].memory,
        memory_goal=LOADED_MEMORY_GOAL if dense else 0,
    )


def split(name: str, side: Measured, rest: str) -> Figure:
    """Return the milliseconds of a task, and of its parts in words."""
    parts = {p: side.parts[p] for p in (DATA, TARGETS, POSTPROCESSING, ENCODING) if p in side.parts}
    parts[rest] = side.seconds - sum(parts.values())
    words = ", ".join(f"{part} {1e3 * seconds:.1f}" for part, seconds in parts.items())
    return Figure(name, 1e3 * side.seconds, f"ms: {words}")
