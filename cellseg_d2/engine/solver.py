"""Optimizer, learning-rate schedule and epochs, from a config."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_upstream_lr_scheduler
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from ..errors import ConfigError
from .layer_decay import decay_by_layer

logger = logging.getLogger(__name__)

FULL_MODEL = "full_model"
"""``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` that clips the norm of all gradients together."""

LAYER_SCALE = "layer_scale"
"""What torchvision's ``CNBlock`` calls the factors of its channels, which are no weights either."""


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build SGD, Adam or AdamW, with upstream's parameter groups.

    Norm layers and ConvNeXt's layer scale get ``SOLVER.WEIGHT_DECAY_NORM``; with
    ``SOLVER.LAYER_DECAY`` below 1, ConvNeXt's layers get learning rates of their own.

    ``CLIP_TYPE`` "value" and "norm" clip each parameter inside the optimizer, as upstream;
    "full_model" is done by the training step.

    Raises:
        ConfigError: for an unknown ``SOLVER.OPTIMIZER``, a ``LAYER_DECAY`` out of range, or one
            below 1 where the model has no ConvNeXt.
    """
    solver = cfg.SOLVER
    # All parameters in one kernel: a quarter of the time on a CPU.
    adam = {"betas": tuple(solver.BETAS), "fused": True}
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "SGD": (torch.optim.SGD, {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}),
        "Adam": (torch.optim.Adam, adam),
        "AdamW": (torch.optim.AdamW, adam),
    }
    if solver.OPTIMIZER not in kinds:
        raise ConfigError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; known: {', '.join(kinds)}")
    kind, arguments = kinds[solver.OPTIMIZER]
    if solver.CLIP_GRADIENTS.ENABLED and solver.CLIP_GRADIENTS.CLIP_TYPE != FULL_MODEL:
        kind = maybe_add_gradient_clipping(cfg, kind)
    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        overrides={LAYER_SCALE: {"weight_decay": solver.WEIGHT_DECAY_NORM}},
    )
    if solver.LAYER_DECAY != 1:
        parameters = decay_by_layer(parameters, model, solver.LAYER_DECAY)
    return kind(parameters, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, **arguments)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """Build the schedule; "WarmupCosineLR" ends at ``SOLVER.MIN_LR`` (upstream's ends at 0).

    A warm-up of more than half of the iterations is shortened to a tenth of them, with a warning:
    the rate would hardly rise before it falls, and training learn nothing.
    """
    cfg = _with_room_after_warm_up(cfg)
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupCosineLR":
        return build_upstream_lr_scheduler(cfg, optimizer)
    if not 0 <= solver.MIN_LR <= solver.BASE_LR:
        raise ConfigError(
            f"SOLVER.MIN_LR is {solver.MIN_LR}; it lies between 0 and BASE_LR, {solver.BASE_LR}"
        )
    schedule = WarmupParamScheduler(
        CosineParamScheduler(1.0, solver.MIN_LR / solver.BASE_LR),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def continue_schedule(scheduler: LRMultiplier) -> None:
    """Set the rates of a schedule that was resumed: the config's, and not the checkpoint's.

    Args:
        scheduler: knows the last iteration; its optimizer's groups have an ``initial_lr``.
    """
    groups = scheduler.optimizer.param_groups
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    for group, rate in zip(groups, scheduler.get_lr(), strict=True):
        group["lr"] = rate


def _with_room_after_warm_up(cfg: CfgNode) -> CfgNode:
    warm_up, iterations = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER
    if 2 * warm_up <= iterations:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.WARMUP_ITERS = iterations // 10
    logger.warning(
        "SOLVER.WARMUP_ITERS is %d, of %d iterations: warming up over %d in place of them",
        warm_up,
        iterations,
        cfg.SOLVER.WARMUP_ITERS,
    )
    return cfg


def epochs_to_iterations(cfg: CfgNode, num_images: int) -> CfgNode:
    """Return the config with its epochs turned into iterations, where it counts in epochs.

    An epoch is ``iterations_per_epoch`` iterations. ``MAX_ITER``, ``CHECKPOINT_PERIOD`` and
    ``TEST.EVAL_PERIOD`` are set from ``MAX_EPOCHS``, ``CHECKPOINT_EPOCHS`` and ``EVAL_EPOCHS``.

    Args:
        cfg: not changed.
        num_images: images in the training set.
    """
    if cfg.SOLVER.MAX_EPOCHS <= 0:
        return cfg
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    per_epoch = iterations_per_epoch(cfg, num_images)
    cfg.SOLVER.MAX_ITER = cfg.SOLVER.MAX_EPOCHS * per_epoch
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.SOLVER.CHECKPOINT_EPOCHS * per_epoch or cfg.SOLVER.MAX_ITER
    cfg.TEST.EVAL_PERIOD = cfg.TEST.EVAL_EPOCHS * per_epoch
    logger.info(
        "%d epochs of %d iterations (%d images, %d an update): %d iterations",
        cfg.SOLVER.MAX_EPOCHS,
        per_epoch,
        num_images,
        images_per_iteration(cfg),
        cfg.SOLVER.MAX_ITER,
    )
    if frozen:
        cfg.freeze()
    return cfg


def iterations_per_epoch(cfg: CfgNode, num_images: int) -> int:
    """Iterations in which the training set is seen once."""
    return math.ceil(num_images / images_per_iteration(cfg))


def images_per_iteration(cfg: CfgNode) -> int:
    """Images that one update is computed from: ``ACCUMULATE`` batches of ``IMS_PER_BATCH``."""
    return cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATE
