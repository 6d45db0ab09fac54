"""The page itself: everything put into one HTML file that needs no other and no network."""

from __future__ import annotations

import base64
import hashlib
import logging
from os import PathLike
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ...checkpoint.files import replace_file
from ...evaluation.image_result import shown_predictions
from ..colors import class_colors
from . import charts
from .facts import config_rows, run_facts
from .matching import IOU_THRESHOLD, STEPS, Tallies, match_predictions, tally
from .pictures import choose_images, draw_picture
from .run_charts import evaluation_charts, training_charts
from .sources import RunSources, evaluation_command
from .tables import confusion_tables, image_table, score_tables

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_DEFAULT_THRESHOLD = 0.5


def write_report(run: RunSources, output: str | PathLike[str], limit: int = 6) -> None:
    """Write the report of a run; the file appears whole or not at all.

    Args:
        run: as ``read_run`` gives it.
        output: the HTML file; its folder is made where it is missing.
        limit: how many images are shown, the worst and the best.

    Raises:
        CellDataError: for an image that cannot be read.
    """
    page = render_report(run, limit).encode("utf-8")
    with replace_file(output) as file:
        file.write(page)
    logger.info("%s: %.1f MB", output, len(page) / 1e6)


def render_report(run: RunSources, limit: int = 6) -> str:
    """Return the report of a run as HTML; see ``write_report``."""
    names = run.class_names
    zeros = np.zeros((len(names), STEPS + 1), np.int64)
    totals = Tallies(zeros, zeros, zeros[:, 0])
    chosen = {row["image_id"]: (row, rank) for row, rank in choose_images(run, limit)}
    drawn = {}
    for image_id, item in run.dicts.items():
        annotations, size = item["annotations"], (item["height"], item["width"])
        predictions = shown_predictions(run.predictions[image_id], size)
        matches = match_predictions(annotations, predictions, size)
        totals += tally(annotations, predictions, matches, len(names))
        if image_id in chosen:
            drawn[image_id] = draw_picture(run, *chosen[image_id], predictions, matches)
    threshold = run.details.get("score_threshold", _DEFAULT_THRESHOLD)
    script, style = ((_FOLDER / name).read_text("utf-8") for name in ("report.js", "report.css"))
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        name=run.folder.resolve().name,
        dataset=run.details["dataset"],
        facts=run_facts(run),
        config_rows=config_rows(run),
        config=run.cfg.dump(),
        score_tables=score_tables(run),
        image_table=image_table(run),
        confusion_tables=confusion_tables(run),
        training_charts=training_charts(run),
        evaluation_charts=evaluation_charts(run),
        frame=charts,
        classes=[
            {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*color)}
            for name, color in zip(names, class_colors(len(names)), strict=True)
        ],
        pictures=[drawn[image_id] for image_id in chosen],
        num_images=len(run.dicts),
        iou=IOU_THRESHOLD,
        threshold=f"{round(STEPS * threshold) / STEPS:.2f}",
        tallies={"tp": totals.tp.tolist(), "fp": totals.fp.tolist(), "gt": totals.gt.tolist()},
        evaluation_command=evaluation_command(run.folder),
        style=Markup(style),
        script=Markup(script),
        # The page allows this script alone: none that a name would bring along.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )
