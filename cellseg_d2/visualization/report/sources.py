"""Everything that a report is made from, read from a run's folder and its data set."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ...config import load_config
from ...data.layout import image_name
from ...engine.best_model import AVERAGED, BEST_MODEL
from ...engine.hooks import AVERAGED_MODEL, FINAL_MODEL
from ...engine.run_folder import read_record
from ...engine.setup import register_datasets
from ...errors import CellDataError, ConfigError
from ...evaluation.evaluator import DETAILS_FILE, PREDICTIONS_FILE
from ...evaluation.score_file import SCORE_FILE
from ..metrics import Series, read_metrics

EVALUATION_FOLDER = "evaluation"
"""In a run's folder; it has a folder of its own for each data set that was evaluated on."""

CONFIG_FILE, METRICS_FILE = "config.yaml", "metrics.json"
_TOLERANCE = 1e-6  # percent


@dataclass(frozen=True)
class RunSources:
    """A run and one evaluation of it.

    Attributes:
        folder: of the run.
        cfg: its config.
        record: ``run.json``; None where there is none.
        metrics: by name, of ``metrics.json``; empty where there is none.
        scores: by task, in percent; None for what could not be measured.
        details: what ``CellEvaluator`` wrote, see its ``details``.
        dicts: of the data set, by image id.
        predictions: by image id, with categories from 0.
    """

    folder: Path
    cfg: CfgNode
    record: dict[str, Any] | None
    metrics: Mapping[str, Series]
    scores: dict[str, dict[str, float | None]]
    details: dict[str, Any]
    dicts: dict[int, dict[str, Any]]
    predictions: dict[int, list[dict[str, Any]]]

    @property
    def class_names(self) -> list[str]:
        """Of the categories, in order."""
        return list(self.details["classes"])

    def task_scores(self, task: str) -> dict[str, float | None]:
        """Return the scores of a task on this data set, empty where it was not measured.

        With averaged weights they are theirs, as the details and predictions are.
        """
        for prefix in (AVERAGED, ""):
            for name in (f"{prefix}{self.details['dataset']}/{task}", prefix + task):
                if name in self.scores:
                    return self.scores[name]
        return {}


def read_run(
    folder: str | PathLike[str], options: Sequence[str] = (), dataset: str | None = None
) -> RunSources:
    """Read a run, its last evaluation, and the data set's dicts.

    Args:
        folder: ``OUTPUT_DIR`` of the run.
        options: config keys and values in turn, such as ``DATASETS.CELL.ROOT`` where the data have
            been moved since.
        dataset: one of ``DATASETS.TEST``; None for the first.

    Raises:
        CellDataError: where something is missing, cannot be read, or does not belong to the rest;
            it names the command that makes it.
        ConfigError: for a config or options that cannot be used.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise CellDataError(
            folder,
            f"no {CONFIG_FILE}",
            "the output folder of a training",
            "name the folder that train_net.py wrote to, its OUTPUT_DIR",
        )
    cfg = load_config(folder / CONFIG_FILE, ["OUTPUT_DIR", str(folder), *options])
    names = list(cfg.DATASETS.TEST)
    if not names or (dataset is not None and dataset not in names):
        raise ConfigError(
            f"{folder / CONFIG_FILE}: evaluated are {', '.join(names) or 'no data sets'} "
            f"(DATASETS.TEST), not {dataset or 'any'}"
        )
    evaluation = folder / EVALUATION_FOLDER / (dataset or names[0])
    command = evaluation_command(folder)
    details = _read_json(evaluation / DETAILS_FILE, dict, command)
    listed = _read_json(evaluation / PREDICTIONS_FILE, list, command)
    scores = _read_json(folder / SCORE_FILE, dict, command)
    register_datasets(cfg)
    dicts = {item["image_id"]: item for item in DatasetCatalog.get(details["dataset"])}
    predictions: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in dicts}
    for entry in listed:
        if "segmentation" not in entry:
            raise CellDataError(
                evaluation / PREDICTIONS_FILE,
                "predictions without masks",
                "those of a model with a mask head",
                "report on a run with MODEL.MASK_ON True",
            )
        if entry["image_id"] in predictions:
            entry["category_id"] -= 1  # the file counts from 1, as a submission does
            predictions[entry["image_id"]].append(entry)
    has_metrics = (folder / METRICS_FILE).is_file()
    run = RunSources(
        folder,
        cfg,
        read_record(folder),
        read_metrics(folder / METRICS_FILE) if has_metrics else {},
        scores,
        details,
        dicts,
        predictions,
    )
    _check_same_data(run, evaluation / DETAILS_FILE, command)
    _check_same_evaluation(run, command)
    return run


def evaluation_command(folder: Path) -> str:
    """Return the command that evaluates a run's best checkpoint and writes what is needed."""
    saved = sorted(folder.glob("model_*.pth"))
    first = [folder / f"{name}.pth" for name in (BEST_MODEL, AVERAGED_MODEL, FINAL_MODEL)]
    found = [path for path in first if path in saved] + saved[::-1]
    weights = shlex.quote(str(found[0])) if found else "CHECKPOINT.pth"
    return (
        f"python train_net.py --config-file {shlex.quote(str(folder / CONFIG_FILE))} --eval-only "
        f"MODEL.WEIGHTS {weights} OUTPUT_DIR {shlex.quote(str(folder))}"
    )


def _read_json(path: Path, kind: type, command: str) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, kind):
            raise ValueError(f"a {type(value).__name__} where a {kind.__name__} is expected")
    except FileNotFoundError as error:
        raise CellDataError(
            path, "no such file", "what an evaluation writes", f"run: {command}"
        ) from error
    except (OSError, ValueError) as error:
        raise CellDataError(
            path,
            f"a file that cannot be used ({error})",
            "what an evaluation writes",
            f"run: {command}",
        ) from error
    return value


def _check_same_data(run: RunSources, path: Path, command: str) -> None:
    """Refuse an evaluation of other images or classes than the config's."""
    evaluated = {row["image_id"]: row["name"] for row in run.details["images"]}
    present = {key: image_name(item["file_name"]) for key, item in run.dicts.items()}
    if evaluated != present or run.class_names != list(run.cfg.DATASETS.CELL.CLASS_NAMES):
        differing = sorted({*evaluated.values()} ^ {*present.values()})
        raise CellDataError(
            path,
            f"an evaluation of other images or classes (such as {differing[:3]})",
            f"one of {run.details['dataset']} as it is now",
            f"run: {command}",
        )


def _check_same_evaluation(run: RunSources, command: str) -> None:
    """Refuse scores that are not those of the details: one of the two files is older."""
    for task, score, values in (
        ("panoptic", "PQ", [row.get("PQ") for row in run.details["images"]]),
        ("segm", "AP50", _mean_precisions(run.details["precision_recall"])),
    ):
        scored = run.task_scores(task)
        known = [value for value in values if value is not None]
        if score in scored and known:
            stated = scored[score]
            if stated is None or abs(stated - float(np.mean(known))) > _TOLERANCE:
                raise CellDataError(
                    run.folder / SCORE_FILE,
                    f"{task} {score} {stated}, but {np.mean(known)} in {EVALUATION_FOLDER}/",
                    "both of one evaluation",
                    f"run: {command}",
                )


def _mean_precisions(curves: Mapping[str, Any]) -> list[float | None]:
    return [None if p is None else float(np.mean(p)) for p in curves["precision"].values()]
