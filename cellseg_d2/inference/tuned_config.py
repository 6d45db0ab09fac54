"""A run's thresholds tuned, and stored as a config over the run's own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.structures import Instances
from tqdm import tqdm

from ..checkpoint.files import replace_file
from ..config import complete_config
from ..errors import ConfigError
from .evaluation import needs_predictor
from .predictor import CellPredictor
from .tuning import KEYS, SWEPT, Grid, Thresholds, Trial, tune

TUNED_CONFIG = "tuned.yaml"

PROPOSAL_KEYS = ("MODEL.RPN.PRE_NMS_TOPK_TEST", "MODEL.RPN.POST_NMS_TOPK_TEST")


def tune_config(
    cfg: CfgNode, dicts: Sequence[dict[str, Any]], grid: Grid
) -> tuple[dict[str, Any], list[Trial]]:
    """Choose the thresholds of a trained model; see ``tune``.

    Where ``TEST.TTA`` or ``TEST.TILE`` is on, the cap, the score threshold and mask NMS stay as
    they are; with ``TEST.RESCORE.MASK`` the cap does. With Soft-NMS by a Gaussian there is no NMS
    threshold to choose.

    Args:
        cfg: of the model, with ``MODEL.WEIGHTS``.
        dicts: annotated images, which are read as the model needs them.
        grid: the values to try.

    Returns:
        The chosen values by the keys of the config, with the number of proposals that they were
        found with; and all trials in order.

    Raises:
        CellDataError: for weights or images that cannot be used.
        ConfigError: for a model without masks, or images without a cell.
    """
    if not cfg.MODEL.MASK_ON:
        raise ConfigError("thresholds are tuned by masks' AP50, and MODEL.MASK_ON is False")
    if not any(item["annotations"] for item in dicts):
        raise ConfigError("thresholds are tuned by AP50, and no image to tune on has a cell")
    start = Thresholds(**{name: get_value(cfg, key) for name, key in KEYS.items()})
    if cfg.TEST.SOFT_NMS.METHOD == "gaussian":
        grid = replace(grid, nms=(start.nms,))
    swept = swept_thresholds(cfg)
    loose = loosen(cfg, grid, swept)

    def run_model(nms: float) -> list[Instances]:
        with_nms = loose.clone()
        with_nms.defrost()
        with_nms.MODEL.ROI_HEADS.NMS_THRESH_TEST = nms
        answers = CellPredictor(with_nms).predict_all(item["file_name"] for item in dicts)
        return list(tqdm(answers, f"NMS {nms:g}", len(dicts), unit="image", disable=None))

    thresholds, trials = tune(
        run_model, dicts, cfg.DATASETS.CELL.CLASS_NAMES, start, grid, swept=swept
    )
    values = {key: getattr(thresholds, name) for name, key in KEYS.items()}
    return values | {key: get_value(loose, key) for key in PROPOSAL_KEYS}, trials


def swept_thresholds(cfg: CfgNode) -> tuple[str, ...]:
    """Return the thresholds of ``SWEPT`` that can be swept over a config's answers; see there."""
    if needs_predictor(cfg):
        return ()
    return tuple(name for name in SWEPT if name != "cap" or cfg.TEST.RESCORE.MASK == 0)


def loosen(cfg: CfgNode, grid: Grid, swept: Sequence[str]) -> CfgNode:
    """Return a config whose model answers with all that any setting of a grid would.

    Args:
        cfg: of the model; not changed.
        grid: the values to try.
        swept: the thresholds to loosen; see ``swept_thresholds``.
    """
    loose = cfg.clone()
    loose.defrost()
    if "score" in swept:
        loose.MODEL.ROI_HEADS.SCORE_THRESH_TEST = grid.score[0]
    if "cap" in swept:
        loose.TEST.DETECTIONS_PER_IMAGE = grid.cap[-1]
    if "mask_nms" in swept:
        loose.TEST.MASK_NMS.THRESHOLD = 1.0
    complete_config(loose)
    return loose


def check_tuned_path(output: str | PathLike[str], config_file: str | PathLike[str]) -> Path:
    """Return where ``tuned.yaml`` goes in a folder.

    Raises:
        ConfigError: where it is the config file itself, which would become its own base.
    """
    path = Path(output).resolve() / TUNED_CONFIG
    if path == Path(config_file).resolve():
        raise ConfigError(
            f"{config_file} would be replaced by a config that builds on it: name another folder "
            "(--output), or tune the config that it was made from"
        )
    return path


def write_tuned_config(
    output: str | PathLike[str],
    config_file: str | PathLike[str],
    cfg: CfgNode,
    options: Sequence[str],
    values: Mapping[str, Any],
    note: str,
) -> Path:
    """Write ``tuned.yaml``: the config file as ``_BASE_``, and what is other than there.

    The weights are named by their absolute path, where they are a file.

    Args:
        output: the folder.
        config_file: what was tuned.
        cfg: as it was loaded from the file and the options.
        options: keys and values in turn that were given over the file, and belong to the model.
        values: the tuned ones, by key.
        note: what to say at the file's head, one line.

    Returns:
        The file's path.

    Raises:
        ConfigError: see ``check_tuned_path``.
    """
    path = check_tuned_path(output, config_file)
    weights = Path(cfg.MODEL.WEIGHTS)
    stored = {key: get_value(cfg, key) for key in options[::2]}
    stored["MODEL.WEIGHTS"] = str(weights.resolve() if weights.is_file() else cfg.MODEL.WEIGHTS)
    stored |= values
    tree: dict[str, Any] = {"_BASE_": os.path.relpath(Path(config_file).resolve(), path.parent)}
    for key, value in stored.items():
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    text = f"# {note}\n" + yaml.safe_dump(tree, sort_keys=False)
    with replace_file(path) as file:
        file.write(text.encode())
    return path


def get_value(cfg: CfgNode, key: str) -> Any:
    """Return the value of a dotted key; a tuple as the list that YAML has for it."""
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return list(node) if isinstance(node, tuple) else node
