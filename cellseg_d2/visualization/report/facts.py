"""What a run was made from and how, as rows of names and values."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import get_cfg

from ...config import add_cellseg_config
from ...engine.run_folder import config_as_data, flatten_config
from .sources import RunSources

# They say where a run lies, and stand among the facts already.
_PLACES = ("OUTPUT_DIR", "VERSION")


@dataclass(frozen=True)
class Facts:
    """Some names and values.

    Attributes:
        title: above them.
        rows: name and value.
    """

    title: str
    rows: list[tuple[str, str]]


def run_facts(run: RunSources) -> list[Facts]:
    """Return what is known of the evaluation, the training, the program and the machine."""
    found = [Facts("Evaluation", _evaluation(run))]
    if run.record is None:
        return found
    sessions = run.record["sessions"]
    found.append(Facts("Training", _training(run.record)))
    if sessions:
        found.append(Facts("Program and machine", _program(sessions[-1])))
    return found


def config_rows(run: RunSources) -> list[tuple[str, str, str]]:
    """Return the keys whose values are not the program's defaults, with both: (key, own, default).

    A key that the defaults lack is left out: it belongs to another release.
    """
    defaults = get_cfg()
    add_cellseg_config(defaults)
    own, default = (flatten_config(config_as_data(cfg)) for cfg in (run.cfg, defaults))
    return [
        (key, _text(value), _text(default[key]))
        for key, value in own.items()
        if key in default and key not in _PLACES and value != default[key]
    ]


def _evaluation(run: RunSources) -> list[tuple[str, str]]:
    details = run.details
    rows = [
        ("data set", details["dataset"]),
        ("images", f"{len(run.dicts):,}"),
        (
            "cells in the ground truth",
            f"{sum(len(d['annotations']) for d in run.dicts.values()):,}",
        ),
        ("cells predicted", f"{sum(map(len, run.predictions.values())):,}"),
        ("classes", ", ".join(details["classes"])),
        ("at most, for each image", f"{details['max_detections']:,} cells"),
    ]
    if "score_threshold" in details:
        rows.append(("score from which cells are in label maps", f"{details['score_threshold']:g}"))
    return rows


def _training(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    sessions, weights, data = record["sessions"], record["weights"], record["data"]
    rows = []
    for session in sessions:
        rows.append((f"from iteration {session['iteration']:,}", session["started"]))
        rows.append(("command", shlex.join(session["command"])))
    origin = weights["from"]
    if "sha256" in weights:
        origin += f" ({weights['bytes']:,} bytes, SHA-256 {weights['sha256']})"
    rows.append(("began with weights", origin))
    rows += [(key, str(value)) for key, value in record["seeds"].items()]
    rows.append(("data", f"{data['root']}, fingerprint {data['fingerprint']}"))
    for name, part in data["sets"].items():
        rows.append((name, f"{part['images']:,} images, {part['instances']:,} cells"))
    return rows


def _program(session: Mapping[str, Any]) -> list[tuple[str, str]]:
    program, machine = session["program"], session["environment"]
    revision = "no checkout"
    if program["git"]:
        revision = program["git"]["revision"] + (" and changes" if program["git"]["dirty"] else "")
    rows = [("cellseg_d2", f"{program['cellseg_d2']}, {revision}")]
    rows += [(key, _text(value)) for key, value in session["versions"].items() if value is not None]
    rows.append(("system", machine["system"]))
    rows.append(("processor", f"{machine['cpu']}, {machine['cpus']} cores"))
    rows.append(("GPUs", ", ".join(machine["gpus"]) or "none"))
    rows.append(("processes, device", f"{machine['processes']}, {machine['device']}"))
    rows += [(key, str(value)) for key, value in machine["variables"].items()]
    return rows


def _text(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
