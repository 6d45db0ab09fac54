"""What an ablation shows: a table in Markdown and CSV, and the curves of its runs."""

from __future__ import annotations

import csv
import io
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..checkpoint.files import replace_file
from ..errors import CellDataError
from ..visualization.curves import plot_metrics
from .ablation import METRICS_FILE, Failure, Run, read_result
from .ablation_evaluation import read_evaluation
from .ablation_file import Ablation, Evaluation
from .best_model import AVERAGED

logger = logging.getLogger(__name__)

TABLE_FILE = "table.md"
CSV_FILE = "table.csv"
CURVES_FILE = "curves.png"

SHOWN_SCORES = (
    ("segm", "AP"),
    ("segm", "AP50"),
    ("segm", "AP75"),
    ("bbox", "AP50"),
    ("panoptic", "PQ"),
)


@dataclass(frozen=True)
class Statistic:
    """Mean and spread of one figure over a variant's runs.

    Attributes:
        mean: None without a value.
        spread: sample standard deviation over the seeds; of several splits the root of their mean
            variance. None where no split has two values.
    """

    mean: float | None
    spread: float | None

    @classmethod
    def of(cls, *splits: Sequence[float | None]) -> Statistic:
        """Compute it from the values of each split, leaving out what is None.

        The mean is that of the splits' means, so that a split with fewer runs counts as much.
        """
        known = [[v for v in values if v is not None] for values in splits]
        means = [statistics.fmean(values) for values in known if values]
        variances = [statistics.variance(values) for values in known if len(values) > 1]
        return cls(
            statistics.fmean(means) if means else None,
            math.sqrt(statistics.fmean(variances)) if variances else None,
        )


@dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        variant: its name.
        finished: how many of its runs are.
        runs: how many it has.
        scores: of ``SHOWN_SCORES``, in percent; of the averaged weights where there are some.
        parameters: of the model; None if not known.
        seconds: mean over the runs; None if not known.
    """

    variant: str
    finished: int
    runs: int
    scores: tuple[Statistic, ...]
    parameters: int | None
    seconds: float | None


def summarize(runs: Sequence[Run], evaluation: Evaluation | None = None) -> list[Row]:
    """Sum up the finished runs of each variant, in the order of ``runs``.

    Args:
        runs: of the ablation.
        evaluation: whose scores to take, of the runs so evaluated; None for those at the end of
            each training.

    Raises:
        CellDataError: where a result is damaged.
    """
    rows = []
    for variant in dict.fromkeys(run.variant for run in runs):
        own = [run for run in runs if run.variant == variant]
        by_split: dict[str, list[dict[str, Any]]] = {}
        for run in own:
            result = _result(run, evaluation)
            if result is not None:
                by_split.setdefault(run.split, []).append(result)
        results = [result for group in by_split.values() for result in group]
        scores = tuple(
            Statistic.of(
                *(
                    [_score(result["scores"], task, key) for result in group]
                    for group in by_split.values()
                )
            )
            for task, key in SHOWN_SCORES
        )
        parameters = next((r["parameters"] for r in results if r["parameters"]), None)
        seconds = Statistic.of([result["seconds"] for result in results]).mean
        rows.append(Row(variant, len(results), len(own), scores, parameters, seconds))
    return rows


@dataclass(frozen=True)
class Difference:
    """One variant's scores less the reference's, pair by pair of the same split and seed.

    Attributes:
        variant: its name.
        pairs: how many pairs of finished runs there are.
        scores: for each of ``SHOWN_SCORES`` the pairs' differences, in percentage points; of pairs
            in which both are known.
    """

    variant: str
    pairs: int
    scores: tuple[tuple[float, ...], ...]


def differences(
    runs: Sequence[Run], reference: str, evaluation: Evaluation | None = None
) -> list[Difference]:
    """Compare each variant with one of them, in the order of ``runs``.

    The spread of such differences is the one that tells two variants apart: what is hard in a split
    is hard for both.

    Args:
        runs: of the ablation.
        reference: name of the variant to compare with.
        evaluation: as in ``summarize``.

    Raises:
        CellDataError: where a result is damaged.
    """
    results = {(run.variant, run.split, run.seed): _result(run, evaluation) for run in runs}
    found = []
    for variant in dict.fromkeys(run.variant for run in runs):
        if variant == reference:
            continue
        pairs = [
            (result["scores"], other["scores"])
            for (name, split, seed), result in results.items()
            if name == variant
            and result is not None
            and (other := results.get((reference, split, seed))) is not None
        ]
        scores = []
        for task, key in SHOWN_SCORES:
            values = [(_score(a, task, key), _score(b, task, key)) for a, b in pairs]
            scores.append(tuple(a - b for a, b in values if a is not None and b is not None))
        found.append(Difference(variant, len(pairs), tuple(scores)))
    return found


def _score(scores: Mapping[str, Mapping[str, Any]], task: str, key: str) -> float | None:
    """Return a score of the averaged weights, which further evaluations take too, or of the raw."""
    return scores.get(AVERAGED + task, scores.get(task, {})).get(key)


def _result(run: Run, evaluation: Evaluation | None) -> dict[str, Any] | None:
    if not run.finished:
        return None
    result = read_result(run)
    if evaluation is not None:
        scores = read_evaluation(run, evaluation)
        return None if scores is None else {**result, "scores": scores}
    return result


def markdown(ablation: Ablation, runs: Sequence[Run], failures: Sequence[Failure] = ()) -> str:
    """Lay out the scores of each variant, over all splits and on each, and name what failed.

    Raises:
        CellDataError: where a result is damaged.
    """
    title = f"# {ablation.name}" + (f", form {ablation.form}" if ablation.form else "")
    parts = [title, _table(summarize(runs)), *_compared(ablation, runs)]
    seeds = ", ".join(map(str, ablation.seeds))
    over = "the seeds"
    names = [split.name for split in ablation.splits if split.name]
    if names:
        over += " (of several splits the root of their mean variance)"
    parts.append(f"Percent, mean ± sample standard deviation over {over}; seeds: {seeds}.")
    for evaluation in (None, *ablation.evaluations):
        if evaluation is not None:
            pairs = zip(evaluation.options[::2], evaluation.options[1::2], strict=True)
            options = ", ".join(f"`{key} {value}`" for key, value in pairs)
            parts += [f"# Evaluation {evaluation.name}", f"With {options}."]
            parts += [_table(summarize(runs, evaluation)), *_compared(ablation, runs, evaluation)]
        for name in names:
            own = [run for run in runs if run.split == name]
            parts += [f"## Split {name}", _table(summarize(own, evaluation))]
    if failures:
        parts.append("\n".join(f"- failed: {f.run.folder} ({f.reason})" for f in failures))
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    header = ["variant", "runs", *(f"{task} {key}" for task, key in SHOWN_SCORES)]
    header += ["parameters (M)", "training (s)"]
    lines = [
        [
            row.variant,
            str(row.finished) if row.finished == row.runs else f"{row.finished} of {row.runs}",
            *map(_mean_and_spread, row.scores),
            "–" if row.parameters is None else f"{row.parameters / 1e6:.2f}",
            "–" if row.seconds is None else f"{row.seconds:.0f}",
        ]
        for row in rows
    ]
    align = ("left", *["right"] * (len(header) - 1))
    return tabulate(lines, header, tablefmt="pipe", disable_numparse=True, colalign=align)


def _compared(
    ablation: Ablation, runs: Sequence[Run], evaluation: Evaluation | None = None
) -> list[str]:
    """Return what stands below a table: the differences to the reference, if there is one."""
    if not ablation.reference:
        return []
    header = ["variant", "pairs", *(f"{task} {key}" for task, key in SHOWN_SCORES)]
    lines = [
        [item.variant, str(item.pairs), *map(_range, item.scores)]
        for item in differences(runs, ablation.reference, evaluation)
    ]
    align = ("left", *["right"] * (len(header) - 1))
    return [
        f"Less {ablation.reference}, for each pair of one split and seed: mean ± sample standard "
        "deviation [least, most] in percentage points.",
        tabulate(lines, header, tablefmt="pipe", disable_numparse=True, colalign=align),
    ]


def _range(values: Sequence[float]) -> str:
    if not values:
        return "–"
    statistic = Statistic.of(values)
    spread = "–" if statistic.spread is None else f"{statistic.spread:.1f}"
    return f"{statistic.mean:+.1f} ± {spread} [{min(values):+.1f}, {max(values):+.1f}]"


def csv_text(rows: Sequence[Row]) -> str:
    """Lay out the rows for programs; what is not known is empty."""
    names = [f"{task}_{key}" for task, key in SHOWN_SCORES]
    header = ["variant", "finished", "runs"]
    header += [f"{name}_{part}" for name in names for part in ("mean", "spread")]
    header += ["parameters", "seconds"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        figures = [value for score in row.scores for value in (score.mean, score.spread)]
        writer.writerow(
            [
                row.variant,
                row.finished,
                row.runs,
                *("" if value is None else f"{value:.4f}" for value in figures),
                "" if row.parameters is None else row.parameters,
                "" if row.seconds is None else f"{row.seconds:.1f}",
            ]
        )
    return text.getvalue()


def write_tables(
    output: str | PathLike[str],
    ablation: Ablation,
    runs: Sequence[Run],
    failures: Sequence[Failure] = (),
) -> str:
    """Write ``table.md`` and ``table.csv`` over the finished runs.

    Further evaluations are in ``table.md`` too, and in a ``table-<evaluation>.csv`` each.

    Returns:
        What ``table.md`` holds.

    Raises:
        CellDataError: where a result is damaged.
    """
    text = markdown(ablation, runs, failures)
    files = {TABLE_FILE: text, CSV_FILE: csv_text(summarize(runs))}
    for evaluation in ablation.evaluations:
        files[f"table-{evaluation.name}.csv"] = csv_text(summarize(runs, evaluation))
    for name, content in files.items():
        with replace_file(Path(output) / name) as file:
            file.write(content.encode())
    return text


def draw_curves(output: str | PathLike[str], runs: Sequence[Run]) -> Path | None:
    """Draw ``curves.png`` over the finished runs.

    Returns:
        The picture; None where no run has anything to draw, which is logged.
    """
    several = (len({run.split for run in runs}) > 1, len({run.seed for run in runs}) > 1)
    metrics = {
        "/".join(
            word
            for word, shown in (
                (run.variant, True),
                (run.split, several[0]),
                (f"seed{run.seed}", several[1]),
            )
            if shown
        ): run.folder
        / METRICS_FILE
        for run in runs
        if run.finished
    }
    try:
        return plot_metrics(metrics, Path(output) / CURVES_FILE)
    except (CellDataError, ValueError) as error:
        logger.warning("no curves: %s", error)
        return None


def _mean_and_spread(score: Statistic) -> str:
    if score.mean is None:
        return "–"
    spread = "–" if score.spread is None else f"{score.spread:.1f}"
    return f"{score.mean:.1f} ± {spread}"
