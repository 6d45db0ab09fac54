"""Further evaluations of what an ablation trained: what test time alone gains, for each run."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ..checkpoint.files import replace_file
from ..config import load_config
from ..errors import CellDataError
from ..evaluation.score_file import SCORE_FILE, write_json_whole
from .ablation import CONFIG_FILE, EVALUATIONS, RESULT_FILE, Failure, Run, run_script
from .ablation_file import Evaluation
from .hooks import AVERAGED_MODEL, FINAL_MODEL

logger = logging.getLogger(__name__)


def evaluate_run(
    run: Run, evaluations: Sequence[Evaluation], train_script: str | PathLike[str]
) -> list[Failure]:
    """Evaluate a finished run in each way in which it has not been evaluated yet.

    Args:
        run: which is finished.
        evaluations: of the ablation.
        train_script: ``train_net.py``.

    Returns:
        What went wrong.

    Raises:
        CellDataError: for a damaged result of a former evaluation.
    """
    failures = []
    for evaluation in evaluations:
        if read_evaluation(run, evaluation) is not None:
            continue
        folder = evaluation_folder(run, evaluation)
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("evaluation %s; log in %s", evaluation.name, folder)
        start = time.monotonic()
        failure = run_script(run, evaluation_command(run, evaluation, train_script), folder)
        seconds = time.monotonic() - start
        logger.info("  %s after %.0f s", "failed" if failure else "done", seconds)
        if failure:
            failures.append(failure)
            continue
        # With its config the folder is one that reports can be made from.
        cfg = load_config(
            run.folder / CONFIG_FILE, ["OUTPUT_DIR", str(folder), *evaluation.options]
        )
        with replace_file(folder / CONFIG_FILE) as file:
            file.write(cfg.dump().encode())
        scores = json.loads((folder / SCORE_FILE).read_text(encoding="utf-8"))
        result = {"options": list(evaluation.options), "scores": scores}
        write_json_whole(result, folder / RESULT_FILE)
    return failures


def evaluation_command(
    run: Run, evaluation: Evaluation, train_script: str | PathLike[str]
) -> list[str]:
    """Return the command that evaluates a run: its averaged weights where it has some."""
    averaged, final = (run.folder / f"{name}.pth" for name in (AVERAGED_MODEL, FINAL_MODEL))
    return [
        *(sys.executable, str(train_script)),
        *("--config-file", str(run.folder / CONFIG_FILE), "--eval-only"),
        *("MODEL.WEIGHTS", str(averaged if averaged.is_file() else final)),
        *("OUTPUT_DIR", str(evaluation_folder(run, evaluation)), *evaluation.options),
    ]


def evaluation_folder(run: Run, evaluation: Evaluation) -> Path:
    """Return the folder of an evaluation's scores."""
    return run.folder / EVALUATIONS / evaluation.name


def read_evaluation(run: Run, evaluation: Evaluation) -> dict[str, Any] | None:
    """Return the scores of an evaluation, by task; None where it was not made with its options.

    Raises:
        CellDataError: for a damaged file.
    """
    path = evaluation_folder(run, evaluation) / RESULT_FILE
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        same = result["options"] == list(evaluation.options)
        return dict(result["scores"]) if same else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CellDataError(
            path, f"a file that cannot be used ({error})", "an evaluation's result", "remove it"
        ) from error
