"""One folder, one run: what is refused before a training, and what it is warned of."""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng

from ..checkpoint.files import replace_file
from ..errors import CellDataError

logger = logging.getLogger(__name__)

RECORD_FILE = "run.json"
CONFIG_FILE = "config.yaml"

# They do not change what a run computes, or change with the place it is run at.
_FREE_KEYS = {"OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "DATASETS.CELL.CACHE_DIR"}


def refuse_second_run(output_dir: str | PathLike[str], resume: bool) -> None:
    """Refuse to train into a folder that holds a training, unless it is to be gone on with.

    Args:
        output_dir: ``OUTPUT_DIR``; it may be missing.
        resume: whether ``--resume`` was given.

    Raises:
        CellDataError: where there is a training; it says what is there and what to do.
    """
    folder = Path(output_dir)
    if resume or not folder.is_dir():
        return
    names = sorted(path.name for path in folder.glob("model_*.pth"))
    names += [name for name in ("last_checkpoint", RECORD_FILE) if (folder / name).exists()]
    metrics = folder / "metrics.json"
    if metrics.is_file() and metrics.stat().st_size:
        names.append(metrics.name)
    if names:
        listing = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise CellDataError(
            folder,
            f"a training ({listing})",
            "a folder of its own for each training",
            "add --resume to go on with it, name another OUTPUT_DIR, or remove the folder",
        )


def begin_run(cfg: CfgNode, args: Namespace) -> None:
    """Log what is run, and seed; with ``write_config``, Detectron2's ``default_setup``.

    Args:
        cfg: of the run; the loggers are set up.
        args: the command line's.
    """
    logger.info("Environment:\n%s", collect_env_info())
    logger.info("Command line: %s", args)
    logger.info("Config:\n%s", cfg.dump())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def write_config(cfg: CfgNode) -> None:
    """Write ``config.yaml`` into ``OUTPUT_DIR``, once the checkpoint to resume from has fitted it.

    Detectron2 empties the ``config.yaml`` of a run that is gone on with before it writes it anew,
    and that at once: where the disk is full, the process is killed, or the config turns out to be
    another model's, the run has lost its own.

    Args:
        cfg: of the run.

    Raises:
        OSError: where the file cannot be written.
    """
    with replace_file(Path(cfg.OUTPUT_DIR) / CONFIG_FILE) as file:
        file.write(cfg.dump().encode())


def warn_of_changes(cfg: CfgNode) -> None:
    """Warn, key by key, where a run is gone on with under another config than it had last.

    Args:
        cfg: of now; the last one is read from the record in its ``OUTPUT_DIR``, if there is one.

    Raises:
        CellDataError: for a record that cannot be read.
    """
    record = read_record(cfg.OUTPUT_DIR)
    if record is None:
        return
    for key, (was, now) in changed_keys(record["config"], config_as_data(cfg)).items():
        logger.warning("this run goes on with %s %s; it was %s", key, _shown(now), _shown(was))


def changed_keys(
    was: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, tuple[object, object]]:
    """Compare two configs.

    Args:
        was: the one of then, as ``config_as_data`` gives it.
        now: the one of now.

    Returns:
        {key: (value then, value now)} of those that differ and may change what is computed; a key
        that only one of them has came or went with a release, and None stands for it.
    """
    before, after = flatten_config(was), flatten_config(now)
    keys = [key for key in {**before, **after} if key not in _FREE_KEYS]
    pairs = {key: (before.get(key), after.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def config_as_data(cfg: CfgNode) -> dict[str, Any]:
    """Return a config as JSON holds it: plain dicts, lists, strings and numbers."""
    data: dict[str, Any] = json.loads(json.dumps(yaml.safe_load(cfg.dump())))
    return data


def flatten_config(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"SOLVER.BASE_LR": value} of a nested config."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            flat |= flatten_config(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_record(output_dir: str | PathLike[str]) -> dict[str, Any] | None:
    """Read what ``run_record.write_run_record`` wrote.

    Args:
        output_dir: the run's folder.

    Returns:
        The record; None where there is none.

    Raises:
        CellDataError: for a file that is no record.
    """
    path = Path(output_dir) / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["sessions"], list) or not isinstance(record["config"], dict):
            raise ValueError("sessions and config are missing")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CellDataError(
            path,
            f"a file that cannot be used ({error})",
            "the record that a training writes",
            "remove it, and the run goes on with a new one",
        ) from error
    return record


def _shown(value: object) -> object:
    return '""' if value == "" else value
