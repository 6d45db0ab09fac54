"""Ablations: the same training in several variants and seeds, one process after another.

Each run is a folder ``OUTPUT/<variant>/[<split>/]seed<k>`` that ``train_net.py`` trains into. What
was interrupted goes on from its last checkpoint, what is finished is left alone, and what crashes
does not stop the others.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..config import load_config
from ..errors import CellDataError, ConfigError
from ..evaluation.score_file import SCORE_FILE, write_json_whole
from ..modeling.parameter_count import count_parameters
from ..visualization.metrics import read_metrics
from .ablation_file import RESERVED_OPTIONS, Ablation
from .run_folder import flatten_config

logger = logging.getLogger(__name__)

LOG_FILE = "train.log"
METRICS_FILE = "metrics.json"
CONFIG_FILE = "config.yaml"
# Written when a run has ended well. scores.json alone would not say so: an evaluation of any
# checkpoint writes it too.
RESULT_FILE = "result.json"
EVALUATIONS = "evaluations"
"""In a run's folder; it has a folder of its own for each further evaluation."""
# Lines of a crashed run's log that are reported.
TAIL_LINES = 15
# They do not change what a run computes, or change with the place it is run at.
_FREE_KEYS = {
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "DATALOADER.NUM_WORKERS",
    "DATASETS.CELL.CACHE_DIR",
}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        variant: name of the variant.
        seed: ``SEED``.
        folder: its ``OUTPUT_DIR``.
        config: its config file.
        options: keys and values over that, in turn.
        split: name of the split; "" where there is only the config's.
    """

    variant: str
    seed: int
    folder: Path
    config: Path
    options: tuple[str, ...]
    split: str = ""

    @property
    def finished(self) -> bool:
        """Whether it has its result."""
        return (self.folder / RESULT_FILE).is_file()

    @property
    def state(self) -> str:
        """One of "finished", "interrupted" (there is something to go on from) and "new"."""
        if self.finished:
            return "finished"
        return "interrupted" if (self.folder / "last_checkpoint").is_file() else "new"

    def command(self, train_script: str | PathLike[str]) -> list[str]:
        """Return the command that trains it, from the start or from its last checkpoint."""
        script = [sys.executable, os.fspath(train_script)]
        return [*script, "--config-file", str(self.config), "--resume", *self.options]


@dataclass(frozen=True)
class Failure:
    """A run that did not end well.

    Attributes:
        run: the run.
        reason: what happened, in a few words.
        tail: the last lines of its log.
    """

    run: Run
    reason: str
    tail: tuple[str, ...]


def plan_runs(
    ablation: Ablation,
    output: str | PathLike[str],
    options: Sequence[str] = (),
) -> list[Run]:
    """List the runs of an ablation, variant by variant, each checked before any is started.

    Args:
        ablation: what is compared.
        output: folder of all runs.
        options: config keys and values in turn, for every run; they prevail over the file's.

    Raises:
        ConfigError: where a variant's config cannot be loaded, an option is one that the tool sets,
            or a folder holds a run of another config.
    """
    for key in options[::2]:
        if key in RESERVED_OPTIONS:
            raise ConfigError(f"options: {key} is set for each run by the tool")
    # The images are parsed once for all runs.
    cache = ("DATASETS.CELL.CACHE_DIR", str(Path(output) / "annotation_cache"))
    runs = []
    for variant, split, seed in itertools.product(
        ablation.variants, ablation.splits, ablation.seeds
    ):
        folder = Path(output) / variant.name / split.name / f"seed{seed}"
        own = ("SEED", str(seed), "OUTPUT_DIR", str(folder))
        words = (*cache, *variant.options, *split.options, *options, *own)
        try:
            cfg = load_config(variant.config, words)
        except ConfigError as error:
            raise ConfigError(f"variant {variant.name}: {error}") from error
        _check_same_config(folder, cfg)
        runs.append(Run(variant.name, seed, folder, variant.config, words, split.name))
    return runs


def choose_runs(runs: Sequence[Run], only: Collection[str] = ()) -> list[Run]:
    """Return the runs of some variants; all where none is named.

    Raises:
        ConfigError: for a variant that is not there.
    """
    names = {run.variant for run in runs}
    unknown = sorted(set(only) - names)
    if unknown:
        raise ConfigError(
            f"no variant {', '.join(unknown)}; the ablation has {', '.join(sorted(names))}"
        )
    return [run for run in runs if not only or run.variant in only]


def train_runs(
    runs: Sequence[Run], train_script: str | PathLike[str]
) -> Iterator[tuple[Run, Failure | None]]:
    """Train what is not finished, one after another; yield each run when it has ended.

    Args:
        runs: as ``plan_runs`` gives them.
        train_script: ``train_net.py``.

    Yields:
        Each run, and what went wrong with it if anything did.
    """
    for number, run in enumerate(runs, 1):
        split = f"split {run.split}, " if run.split else ""
        label = f"{run.variant}, {split}seed {run.seed} ({number} of {len(runs)})"
        if run.finished:
            logger.info("%s: finished before", label)
            yield run, None
            continue
        going_on = "going on" if run.state == "interrupted" else "training"
        logger.info("%s: %s; log in %s", label, going_on, run.folder / LOG_FILE)
        start = time.monotonic()
        failure = _train(run, train_script)
        seconds = time.monotonic() - start
        logger.info("%s: %s after %.0f s", label, "failed" if failure else "done", seconds)
        yield run, failure


def read_result(run: Run) -> dict[str, Any]:
    """Return what a finished run gave.

    Returns:
        ``scores`` (by task, in percent, None without ground truth), ``parameters`` (of the model)
        and ``seconds`` (of its iterations); the last two are None where they are not known.

    Raises:
        CellDataError: for a damaged file.
    """
    path = run.folder / RESULT_FILE
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return {key: result[key] for key in ("scores", "parameters", "seconds")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CellDataError(
            path, f"a file that cannot be used ({error})", "a run's result", "remove it, run again"
        ) from error


def _train(run: Run, train_script: str | PathLike[str]) -> Failure | None:
    run.folder.mkdir(parents=True, exist_ok=True)
    failure = run_script(run, run.command(train_script), run.folder)
    if failure:
        return failure
    result = {
        "scores": json.loads((run.folder / SCORE_FILE).read_text(encoding="utf-8")),
        "parameters": _parameters(run),
        "seconds": _iteration_seconds(run.folder / METRICS_FILE),
    }
    # Those of a former training, whose result was removed to have it made again.
    for stale in run.folder.glob(f"{EVALUATIONS}/*/{RESULT_FILE}"):
        stale.unlink()
    write_json_whole(result, run.folder / RESULT_FILE)
    return None


def run_script(run: Run, command: Sequence[str], folder: Path) -> Failure | None:
    """Run ``train_net.py`` for a run, its log in a folder, and see to it that it writes scores.

    Args:
        run: what it is for.
        command: that writes ``scores.json`` into the folder.
        folder: where there is one.
    """
    scores = folder / SCORE_FILE
    scores.unlink(missing_ok=True)
    with open(folder / LOG_FILE, "wb") as log:
        # Unbuffered, so that a crash does not take the last lines with it.
        status = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        ).returncode
    if status == 0 and scores.is_file():
        return None
    if status < 0:
        reason = f"signal {signal.Signals(-status).name}"
    else:
        reason = f"exit status {status}" if status else f"wrote no {SCORE_FILE}"
    text = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    return Failure(run, reason, tuple(text.splitlines()[-TAIL_LINES:]))


def _parameters(run: Run) -> int | None:
    """Count the model's parameters; a model that the meta device cannot hold stays uncounted."""
    try:
        return count_parameters(load_config(run.config, run.options))
    except (NotImplementedError, RuntimeError) as error:
        logger.warning("%s: parameters not counted: %s", run.variant, error)
        return None


def _iteration_seconds(metrics: Path) -> float | None:
    """Seconds that the iterations took, without evaluation and interruptions."""
    try:
        series = read_metrics(metrics).get("time")
    except CellDataError:
        return None
    if series is None:  # the first few iterations are not timed
        return None
    previous = -1
    seconds = 0.0
    # Each value stands for the iterations since the one before.
    for iteration, value in zip(series.iterations.tolist(), series.values.tolist(), strict=True):
        seconds += (iteration - previous) * value
        previous = iteration
    return seconds


def _check_same_config(folder: Path, cfg: CfgNode) -> None:
    """Refuse to go on with, or to report, a run that was made with another config."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return
    try:
        there = flatten_config(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    here = flatten_config(yaml.safe_load(cfg.dump()))
    # A key that only one of them has came or went with a release.
    free = set(_FREE_KEYS)
    if cfg.INPUT.CELL.NORMALIZATION == "dataset":
        free |= {"INPUT.CELL.NORMALIZATION", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"}  # now settled
    differing = [
        key for key in here if key in there and key not in free and here[key] != there[key]
    ]
    if differing:
        key = differing[0]
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise ConfigError(
            f"{folder}: holds a run with {key} {there[key]}, not {here[key]}{more}; "
            "choose another output folder, or remove this one"
        )
