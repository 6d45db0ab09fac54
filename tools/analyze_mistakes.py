#!/usr/bin/env python
"""Say which cells a model finds and which it loses: by class, size, density, stain, and image.

Example: python tools/analyze_mistakes.py --run output --output output/mistakes

It reads what the last evaluation left in each run's folder, and the data set's images. Runs of
several seeds or splits are put together. The tables are printed and written to mistakes.md, the
worst mistakes of each kind drawn to mistakes.png (pieces of the images: keep it where those may be
seen). Groups by size, neighbours and stain are quarters of the cells of the ground truth.
Exit status: 0 when all is well, 1 on a fault in the data, 2 on wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from cellseg_d2.checkpoint.files import replace_file
from cellseg_d2.data.config_reader import image_reader
from cellseg_d2.data.layout import image_name
from cellseg_d2.errors import CellDataError, ConfigError
from cellseg_d2.evaluation.image_result import shown_predictions
from cellseg_d2.evaluation.mistakes import (
    NEIGHBOURHOOD,
    TOUCHED,
    Cells,
    describe_cells,
    quartile_edges,
    tabulate_strata,
)
from cellseg_d2.visualization.mistake_sheet import choose_mistakes, draw_mistakes
from cellseg_d2.visualization.png import save_png
from cellseg_d2.visualization.report.sources import RunSources, evaluation_command, read_run

_LEGEND = f"""\
Percent. recall, merged, split, misdrawn, missed: of the cells of the ground truth. merged: one
prediction covers most of it and of another cell; split: two or more lie within it; misdrawn: an
IoU from {TOUCHED:g} to .5. precision: of the predictions. IoU, named: of the cells found, the mean
and those given their class.
"""


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with status 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run",
        dest="runs",
        type=Path,
        required=True,
        action="append",
        metavar="DIR",
        help="OUTPUT_DIR of a training; may be given several times",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="(default: mistakes, in the first run)"
    )
    parser.add_argument("--dataset", help="one of DATASETS.TEST (default: the first)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    return parser.parse_args(arguments)


def read_cells(runs: Sequence[RunSources]) -> tuple[Cells, Cells, list[tuple[RunSources, int]]]:
    """Describe all cells of several runs.

    Returns:
        The ground truth's and the predicted cells, whose ``image`` counts the images of all runs;
        and of each of these the run and its own image id.

    Raises:
        CellDataError: for a run without panoptic scores, or an image that cannot be read.
    """
    parts: list[tuple[Cells, Cells]] = []
    places: list[tuple[RunSources, int]] = []
    for run in runs:
        if "score_threshold" not in run.details:
            raise CellDataError(
                run.folder,
                "an evaluation without panoptic scores",
                "one with them, which says what belongs to a label map",
                f"run: {evaluation_command(run.folder)} TEST.PANOPTIC.ENABLED True",
            )
        for image_id, item in run.dicts.items():
            record = {**item, "image_id": len(places)}
            image = image_reader(run.cfg)(item["file_name"])
            threshold = run.details["score_threshold"]
            parts.append(describe_cells(record, run.predictions[image_id], image, threshold))
            places.append((run, image_id))
    gt, pred = (Cells.cat(side) for side in zip(*parts, strict=True))
    return gt, pred, places


def tables(gt: Cells, pred: Cells, class_names: Sequence[str], images: Sequence[str]) -> str:
    """Return the tables in Markdown.

    Args:
        gt: the ground truth's cells.
        pred: the predicted ones.
        class_names: of the categories.
        images: a name for each value of ``image``; images of one name are one row.
    """
    names = sorted(set(images))
    row_of = np.array([names.index(name) for name in images])
    groups: list[tuple[str, list[str], np.ndarray, np.ndarray]] = [
        ("all", ["all"], np.zeros(len(gt), np.int64), np.zeros(len(pred), np.int64)),
        ("class (precision: as predicted)", list(class_names), gt.category, pred.category),
        _quarters("diameter, pixels", gt.diameter, pred.diameter),
        _quarters(f"neighbours within {NEIGHBOURHOOD:g} pixels", gt.neighbours, pred.neighbours),
        _quarters("stain, optical density", gt.density, pred.density),
        ("image", names, row_of[gt.image], row_of[pred.image]),
    ]
    text = []
    for title, labels, of_gt, of_pred in groups:
        rows = tabulate_strata(gt, pred, of_gt, of_pred, len(labels))
        cells: list[list[Any]] = [
            [label, f"{row['cells']:,.0f}", *(_percent(row[key]) for key in list(row)[1:])]
            for label, row in zip(labels, rows, strict=True)
        ]
        header = [title, *rows[0]]
        text.append(tabulate(cells, header, tablefmt="github", disable_numparse=True))
    return "\n\n".join(text) + "\n"


def _quarters(
    title: str, gt: np.ndarray, pred: np.ndarray
) -> tuple[str, list[str], np.ndarray, np.ndarray]:
    edges = quartile_edges(gt)
    words = [f"{edge:g}" for edge in edges]
    inner = [f"{low} to {high}" for low, high in zip(words, words[1:], strict=False)]
    labels = [f"below {words[0]}", *inner, f"{words[-1]} and more"] if words else ["all"]
    return title, labels, np.digitize(gt, edges), np.digitize(pred, edges)


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.1f}"


def analyze(runs: Sequence[RunSources], output: Path) -> str:
    """Write the tables and the picture into a folder; return the tables."""
    gt, pred, places = read_cells(runs)
    if len(gt) == 0:
        raise CellDataError(
            runs[0].folder, "no cell in the ground truth", "annotated images", "evaluate on those"
        )
    names = [image_name(run.dicts[image_id]["file_name"]) for run, image_id in places]
    classes = runs[0].class_names
    text = tables(gt, pred, classes, names)
    with replace_file(output / "mistakes.md") as file:
        file.write(text.encode("utf-8"))
    mistakes = choose_mistakes(gt, pred, classes, names)
    # A former one would be taken for these runs'.
    (output / "mistakes.png").unlink(missing_ok=True)
    if mistakes:
        shown = {mistake.image: places[mistake.image] for mistake in mistakes}
        images, truth, answers = {}, {}, {}
        for number, (run, image_id) in shown.items():
            item = run.dicts[image_id]
            images[number] = (names[number], image_reader(run.cfg)(item["file_name"]))
            truth[number] = item["annotations"]
            threshold = run.details["score_threshold"]
            sure = [p for p in run.predictions[image_id] if p["score"] >= threshold]
            answers[number] = shown_predictions(sure, (item["height"], item["width"]))
        picture = draw_mistakes(mistakes, images, truth, answers, classes)
        save_png(output / "mistakes.png", picture)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(arguments)
    output = args.output or args.runs[0] / "mistakes"
    try:
        runs = [read_run(folder, args.opts, args.dataset) for folder in args.runs]
        if any(run.class_names != runs[0].class_names for run in runs):
            raise ConfigError(
                "--run: the runs' classes differ; runs of one data set belong together"
            )
        text = analyze(runs, output)
    except (CellDataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_LEGEND)
    print(text, end="")
    drawn = (output / "mistakes.png").is_file()
    print(f"\nWrote {output / 'mistakes.md'}" + (" and mistakes.png" if drawn else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
