"""The trainer: Detectron2's, on a stream of batches that resumes by position."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.utils import comm

from ..checkpoint import CellCheckpointer
from ..data import CellDatasetMapper
from ..data.loader import (
    FaultRaisingLoader,
    KeepFaults,
    RepeatFactorSampler,
    StreamSampler,
    build_stream_loader,
)
from ..data.repeat_factors import image_repeat_factors
from ..errors import ConfigError
from ..evaluation import CellEvaluator
from .solver import (
    FULL_MODEL,
    build_lr_scheduler,
    build_optimizer,
    epochs_to_iterations,
    iterations_per_epoch,
)
from .train_step import TrainStep, use_amp

logger = logging.getLogger(__name__)


class CellTrainer(DefaultTrainer):
    """``DefaultTrainer`` for cells.

    Compared with upstream: batches come from a ``StreamSampler``; training may be counted in
    epochs; SGD, Adam and AdamW, cosine to a floor, total-norm clipping; AMP turns itself off
    without CUDA; ``--resume`` restores the optimizer too (0.6 does not); COCO evaluation is built
    in.

    Args:
        cfg: complete (``load_config``) and with its data sets registered.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's: it fixes the kind of step and starts the loader before it is known
        # where in the stream to start.
        super(DefaultTrainer, self).__init__()
        check_evaluation_sets(cfg)
        self.sampler = self.build_sampler(cfg)
        cfg = epochs_to_iterations(cfg, self.sampler.epoch_size)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        clip = cfg.SOLVER.CLIP_GRADIENTS
        total_norm = clip.ENABLED and clip.CLIP_TYPE == FULL_MODEL
        self._trainer = TrainStep(
            create_ddp_model(model, broadcast_buffers=False),
            self.build_train_loader(cfg, self.sampler),
            optimizer,
            amp=use_amp(cfg.SOLVER.AMP.ENABLED, cfg.MODEL.DEVICE),
            max_norm=clip.CLIP_VALUE if total_norm else 0.0,
            norm_type=clip.NORM_TYPE,
            seed=cfg.SEED,
            rank=comm.get_rank(),
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = CellCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.iterations_per_epoch = iterations_per_epoch(cfg, self.sampler.epoch_size)
        self.cfg = cfg
        self._last_eval_results: OrderedDict[str, Any] = OrderedDict()
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_sampler(cls, cfg: CfgNode) -> StreamSampler:
        """Return the stream of positions over the images of ``DATASETS.TRAIN``.

        With ``DATASETS.CELL.REPEAT_THRESHOLD`` above 0, images of rare classes are repeated, and an
        epoch is that much longer.
        """
        dicts = _dicts(cfg.DATASETS.TRAIN)
        stream: dict[str, Any] = {
            "batch_size": cfg.SOLVER.IMS_PER_BATCH,
            "seed": cfg.SEED,
            "rank": comm.get_rank(),
            "world_size": comm.get_world_size(),
        }
        threshold = cfg.DATASETS.CELL.REPEAT_THRESHOLD
        if threshold == 0:
            return StreamSampler(len(dicts), **stream)
        return RepeatFactorSampler(image_repeat_factors(dicts, threshold), **stream)

    @classmethod
    def build_train_loader(
        cls, cfg: CfgNode, sampler: StreamSampler | None = None
    ) -> FaultRaisingLoader:
        """Return the endless loader of training batches."""
        return build_stream_loader(
            _dicts(cfg.DATASETS.TRAIN),
            CellDatasetMapper(cfg, is_train=True),
            sampler or cls.build_sampler(cfg),
            cfg.DATALOADER.NUM_WORKERS,
            pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> FaultRaisingLoader:
        """Return the loader of one data set's images, each once, in order."""
        loader = build_detection_test_loader(
            [{k: v for k, v in d.items() if k != "annotations"} for d in _dicts([dataset_name])],
            mapper=KeepFaults(CellDatasetMapper(cfg, is_train=False)),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        return FaultRaisingLoader(loader)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None
    ) -> OrderedDict[str, Any]:
        """Evaluate on each data set of ``DATASETS.TEST``.

        Returns:
            For each task its scores; of several data sets, the tasks are called ``<set>/<task>``.
        """
        results = super().test(cfg, model, evaluators)
        if len(cfg.DATASETS.TEST) < 2:
            return results
        return OrderedDict(
            (f"{name}/{task}", scores)
            for name, tasks in results.items()
            for task, scores in (tasks or {}).items()
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> CellEvaluator:
        """Return the COCO evaluator, with the detection cap of the config."""
        return CellEvaluator(
            dataset_name,
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            tasks=("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",),
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """See ``engine.solver.build_optimizer``."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """See ``engine.solver.build_lr_scheduler``."""
        return build_lr_scheduler(cfg, optimizer)

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """Return the hooks in the order they run: timing, schedule, checkpoint, evaluation, log."""

        def evaluate() -> OrderedDict[str, Any]:
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        main = comm.is_main_process()
        period = self.cfg.SOLVER.CHECKPOINT_PERIOD
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            hooks.PeriodicCheckpointer(self.checkpointer, period) if main else None,
            hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, evaluate),
            hooks.PeriodicWriter(self.build_writers(), period=20) if main else None,
        ]

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the output folder's last checkpoint, or load ``MODEL.WEIGHTS``.

        Args:
            resume: whether to look for a checkpoint.

        Raises:
            CellDataError: for weights that are missing, unsafe to load, or not this model's; see
                ``CellCheckpointer``.
        """
        super().resume_or_load(resume)
        self.sampler.start = self.start_iter

    def train(self) -> OrderedDict[str, Any]:
        """Train to the end.

        Returns:
            The scores of the last evaluation, on the main process; elsewhere an empty dict.
        """
        super().train()
        return self._last_eval_results

    def run_step(self) -> None:
        """Run one iteration, and log which epoch it belongs to."""
        super().run_step()
        epoch = (self.iter + 1) / self.iterations_per_epoch
        self.storage.put_scalar("epoch", epoch, smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside the model."""
        return {**super().state_dict(), "step": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["step"])


def _dicts(names: list[str] | tuple[str, ...]) -> list[dict[str, Any]]:
    unknown = [name for name in names if name not in DatasetCatalog]
    if unknown:
        raise ConfigError(
            f"no data set is called {', '.join(unknown)}; the config's are cells_train, cells_val, "
            "cells_trainval and cells_test"
        )
    dicts = [d for name in names for d in DatasetCatalog.get(name)]
    if not dicts:
        raise ConfigError(f"no images in {', '.join(names) or 'an empty DATASETS.TRAIN'}")
    return dicts


def check_evaluation_sets(cfg: CfgNode) -> None:
    """Refuse data sets that cannot be evaluated on, before anything is trained.

    Args:
        cfg: reads ``DATASETS.TEST``; empty means that nothing is evaluated.

    Raises:
        ConfigError: for a set without images or without annotations.
    """
    advice = "; change the split, or add DATASETS.TEST () to train without evaluation"
    for name in cfg.DATASETS.TEST:
        if name in DatasetCatalog and not DatasetCatalog.get(name):
            raise ConfigError(
                f"DATASETS.TEST names {name}, which holds no image "
                f"(DATASETS.CELL.VAL_FRACTION is {cfg.DATASETS.CELL.VAL_FRACTION}){advice}"
            )
        if any("annotations" not in item for item in _dicts([name])):
            raise ConfigError(f"DATASETS.TEST names {name}, which has no annotations{advice}")
