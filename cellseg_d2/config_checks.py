"""What values a config may have: those that would be found out only after the data are read."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from detectron2.config import CfgNode

from .errors import ConfigError


def check_ranges(cfg: CfgNode) -> None:
    """Refuse values out of range.

    Args:
        cfg: with this plug-in's keys.

    Raises:
        ConfigError: naming the key, its value and what was expected.
    """
    requirements = _of_data(cfg) | _of_solver(cfg.SOLVER) | _of_test(cfg.TEST)
    requirements |= {
        "DATALOADER.NUM_WORKERS": (cfg.DATALOADER.NUM_WORKERS >= 0, "at least 0"),
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": (
            0 <= cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST <= 1,
            "in [0, 1]",
        ),
        "SEED": (cfg.SEED >= 0, "at least 0, so that a run can be resumed exactly"),
    }
    for key, (holds, expected) in requirements.items():
        if not holds:
            value: Any = cfg
            for part in key.split("."):
                value = value[part]
            raise ConfigError(f"{key} is {value!r}; expected {expected}")
    check_device_name(cfg.MODEL.DEVICE)
    pattern = cfg.DATASETS.CELL.GROUP_PATTERN
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"DATASETS.CELL.GROUP_PATTERN {pattern!r} is no regular expression: {error}"
        ) from error


def check_device_name(name: str) -> None:
    """Refuse what PyTorch knows no device by; whether it is there is not asked.

    Raises:
        ConfigError: naming it.
    """
    try:
        torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"MODEL.DEVICE {name!r} is no device; expected cpu, cuda or cuda:0"
        ) from error


def _of_data(cfg: CfgNode) -> dict[str, tuple[bool, str]]:
    cell, inputs = cfg.DATASETS.CELL, cfg.INPUT.CELL
    paste, limits = inputs.COPY_PASTE, inputs.INTENSITY_RANGE
    return {
        "DATASETS.CELL.INSTANCES": (cell.INSTANCES in ("ids", "components"), "ids or components"),
        "DATASETS.CELL.MIN_AREA": (cell.MIN_AREA >= 1, "at least 1"),
        "DATASETS.CELL.VAL_FRACTION": (0 <= cell.VAL_FRACTION < 1, "at least 0 and below 1"),
        "DATASETS.CELL.SPLIT_SEED": (cell.SPLIT_SEED >= 0, "at least 0"),
        "DATASETS.CELL.CLASS_NAMES": (
            len(set(cell.CLASS_NAMES)) == len(cell.CLASS_NAMES),
            "names that differ",
        ),
        "INPUT.CELL.MAX_PIXELS": (inputs.MAX_PIXELS >= 1, "at least 1"),
        "INPUT.CELL.INTENSITY_RANGE": (
            len(limits) == 0
            or (len(limits) == 2 and limits[0] < limits[1] and all(map(math.isfinite, limits))),
            "[low, high] with low below high, or [] for the stated range",
        ),
        "INPUT.CELL.SCALE": (0 < inputs.SCALE < math.inf, "above 0"),
        "INPUT.CELL.COPY_PASTE.PROB": (0 <= paste.PROB <= 1, "in [0, 1]"),
    }


def _of_solver(solver: CfgNode) -> dict[str, tuple[bool, str]]:
    clip = solver.CLIP_GRADIENTS
    return {
        "SOLVER.IMS_PER_BATCH": (solver.IMS_PER_BATCH >= 1, "at least 1"),
        "SOLVER.BASE_LR": (0 < solver.BASE_LR < math.inf, "above 0"),
        "SOLVER.BETAS": (
            len(solver.BETAS) == 2 and all(0 <= beta < 1 for beta in solver.BETAS),
            "two numbers, at least 0 and below 1",
        ),
        "SOLVER.WEIGHT_DECAY": (solver.WEIGHT_DECAY >= 0, "at least 0"),
        "SOLVER.WARMUP_ITERS": (solver.WARMUP_ITERS >= 0, "at least 0"),
        "SOLVER.ACCUMULATE": (solver.ACCUMULATE >= 1, "at least 1"),
        "SOLVER.MAX_ITER": (solver.MAX_ITER >= 1, "at least 1"),
        "SOLVER.MAX_EPOCHS": (solver.MAX_EPOCHS >= 0, "at least 0"),
        "SOLVER.CHECKPOINT_EPOCHS": (solver.CHECKPOINT_EPOCHS >= 0, "at least 0"),
        "SOLVER.CHECKPOINT_PERIOD": (solver.CHECKPOINT_PERIOD >= 0, "at least 0"),
        "SOLVER.KEEP_CHECKPOINTS": (solver.KEEP_CHECKPOINTS >= 0, "at least 0"),
        "SOLVER.EMA.DECAY": (0 <= solver.EMA.DECAY < 1, "at least 0 and below 1"),
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": (
            clip.CLIP_TYPE in ("full_model", "value", "norm"),
            "full_model, value or norm",
        ),
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": (clip.CLIP_VALUE > 0 or not clip.ENABLED, "above 0"),
        "SOLVER.CLIP_GRADIENTS.NORM_TYPE": (clip.NORM_TYPE > 0 or not clip.ENABLED, "above 0"),
    }


def _of_test(test: CfgNode) -> dict[str, tuple[bool, str]]:
    # TILE, TTA and MERGE are checked by the predictor that reads them.
    stopping = test.EARLY_STOPPING
    return {
        "TEST.DETECTIONS_PER_IMAGE": (test.DETECTIONS_PER_IMAGE >= 1, "at least 1"),
        "TEST.EVAL_EPOCHS": (test.EVAL_EPOCHS >= 0, "at least 0"),
        "TEST.EVAL_PERIOD": (test.EVAL_PERIOD >= 0, "at least 0"),
        "TEST.LOSS_IMAGES": (test.LOSS_IMAGES >= 0, "at least 0"),
        "TEST.TRAIN_IMAGES": (test.TRAIN_IMAGES >= 0, "at least 0"),
        "TEST.EARLY_STOPPING.PATIENCE": (stopping.PATIENCE >= 0, "at least 0"),
        "TEST.EARLY_STOPPING.MIN_GAIN": (stopping.MIN_GAIN >= 0, "at least 0"),
        "TEST.PANOPTIC.SCORE_THRESHOLD": (0 <= test.PANOPTIC.SCORE_THRESHOLD <= 1, "in [0, 1]"),
    }
