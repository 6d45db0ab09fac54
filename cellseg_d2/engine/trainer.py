"""The trainer: Detectron2's, on a stream of batches that resumes by position."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import verify_results
from detectron2.solver.lr_scheduler import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter

from ..checkpoint import CellCheckpointer
from ..data.loader import FaultRaisingLoader, StreamSampler
from ..errors import ConfigError
from ..evaluation import CellEvaluator
from ..machine_faults import explain_training_memory
from ..modeling.mixed_precision import use_amp
from .best_model import AVERAGED, TRAINING, BestModel, best_metric
from .compilation import compile_backbone
from .curve_hook import METRICS_FILE, report_hooks
from .data_sets import (
    TRAIN_SAMPLE,
    build_sampler,
    build_test_loader,
    build_train_loader,
    check_evaluation_sets,
    register_train_sample,
)
from .ema import WeightAverage
from .fault_dump import FaultDump
from .hooks import Checkpoints, Evaluation, Scores
from .metric_rows import MetricRows
from .parallel import parallelize
from .solver import (
    FULL_MODEL,
    build_lr_scheduler,
    build_optimizer,
    continue_schedule,
    epochs_to_iterations,
    images_per_iteration,
    iterations_per_epoch,
)
from .train_step import TrainStep
from .validation import ValidationLosses

logger = logging.getLogger(__name__)


class _StoppedEarly(BaseException):
    """Leaves the loop of training; no error, and so no ``Exception`` that the loop reports."""


class CellTrainer(DefaultTrainer):
    """``DefaultTrainer`` for cells.

    Compared with upstream: batches come from a ``StreamSampler``; training may be counted in
    epochs; SGD, Adam and AdamW, cosine to a floor, total-norm clipping; AMP in float16 turns
    itself off without CUDA; a run that was killed and is resumed ends with the same weights (0.6
    does not even restore the optimizer); evaluation is built in, with the losses on validation
    images, an average of the weights, the best model and early stopping.

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
        best_metric(cfg)  # refuses what cannot work before the model is built
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        clip = cfg.SOLVER.CLIP_GRADIENTS
        total_norm = clip.ENABLED and clip.CLIP_TYPE == FULL_MODEL
        if cfg.SOLVER.COMPILE:
            compile_backbone(model)
        self._trainer = TrainStep(
            parallelize(model),
            self.build_train_loader(cfg, self.sampler),
            optimizer,
            amp=use_amp(cfg.SOLVER.AMP.ENABLED, cfg.MODEL.DEVICE, cfg.SOLVER.AMP.DTYPE),
            accumulate=cfg.SOLVER.ACCUMULATE,
            max_norm=clip.CLIP_VALUE if total_norm else 0.0,
            norm_type=clip.NORM_TYPE,
            seed=cfg.SEED,
            rank=comm.get_rank(),
            faults=FaultDump(cfg.OUTPUT_DIR, cfg),
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = CellCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.resumed = False
        self.iterations_per_epoch = iterations_per_epoch(cfg, self.sampler.epoch_size)
        self.cfg = cfg
        self.average = WeightAverage.from_config(cfg, model)
        self.validation_losses = ValidationLosses(cfg)
        if cfg.TEST.TRAIN_IMAGES:
            register_train_sample(cfg)
        solver = cfg.SOLVER
        self.checkpoints = Checkpoints(
            self.checkpointer, solver.CHECKPOINT_PERIOD, solver.KEEP_CHECKPOINTS, self.average
        )
        best = BestModel.from_config(cfg, self.checkpointer, self.average)
        self.evaluation = Evaluation(cfg.TEST.EVAL_PERIOD, best)
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_sampler(cls, cfg: CfgNode) -> StreamSampler:
        """See ``engine.data_sets.build_sampler``."""
        return build_sampler(cfg)

    @classmethod
    def build_train_loader(
        cls, cfg: CfgNode, sampler: StreamSampler | None = None
    ) -> FaultRaisingLoader:
        """See ``engine.data_sets.build_train_loader``."""
        return build_train_loader(cfg, sampler or cls.build_sampler(cfg))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> FaultRaisingLoader:
        """See ``engine.data_sets.build_test_loader``."""
        return build_test_loader(cfg, dataset_name)

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
        """Return the evaluator that ``TEST`` describes; it writes to ``evaluation/<data set>``."""
        panoptic = cfg.TEST.PANOPTIC
        return CellEvaluator(
            dataset_name,
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            tasks=("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",),
            panoptic=panoptic.ENABLED,
            score_threshold=panoptic.SCORE_THRESHOLD,
            output_dir=Path(cfg.OUTPUT_DIR) / "evaluation" / dataset_name,
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """See ``engine.solver.build_optimizer``."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
        """See ``engine.solver.build_lr_scheduler``."""
        return build_lr_scheduler(cfg, optimizer)

    def build_hooks(self) -> list[HookBase | None]:
        """Return the hooks in the order they run; see ``engine.hooks`` for why it is this one."""
        cfg, folder = self.cfg, Path(self.cfg.OUTPUT_DIR)
        periods = (cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD)
        report = report_hooks(folder, self.max_iter, images_per_iteration(cfg))
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self.average,
            self.evaluation,
            MetricRows(folder / METRICS_FILE, periods),
            self.checkpoints,
            *(report if comm.is_main_process() else []),
        ]

    def build_writers(self) -> list[EventWriter]:
        """Return what the metrics are written with, on the main process."""
        folder = Path(self.cfg.OUTPUT_DIR)
        return [
            JSONWriter(str(folder / METRICS_FILE)),
            # TensorBoard drops what was written of iterations that come again.
            TensorboardXWriter(str(folder), purge_step=self.start_iter),
        ]

    def evaluate(self) -> Scores:
        """Evaluate the model as it is, its averaged weights, and a sample of the training images.

        The averaged weights, where there are some, come last: theirs is what ``evaluation/`` holds.

        Returns:
            The scores by task, those of the averaged weights under ``ema/<task>`` and of the
            training images under ``train/<task>``; and the losses (``ValidationLosses``).
        """
        results: OrderedDict[str, Any] = OrderedDict()
        if self.cfg.TEST.TRAIN_IMAGES:
            cfg = self.cfg.clone()
            cfg.defrost()
            cfg.DATASETS.TEST = (TRAIN_SAMPLE,)
            results |= _prefixed(TRAINING, self.test(cfg, self.model))
        results |= self.test(self.cfg, self.model)
        if self.average is not None:
            with self.average.applied():
                results |= _prefixed(AVERAGED, self.test(self.cfg, self.model))
        return results, self.validation_losses(self.model)

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the output folder's last checkpoint, or load ``MODEL.WEIGHTS``.

        Args:
            resume: whether to look for a checkpoint.

        Raises:
            CellDataError: for weights that are missing, unsafe to load, or not this model's; see
                ``CellCheckpointer``.
            ConfigError: for a checkpoint of more iterations than are to be trained.
        """
        super().resume_or_load(resume)
        if self.start_iter > self.max_iter:
            raise ConfigError(
                f"the run has {self.start_iter} iterations behind it, and the config asks for "
                f"{self.max_iter}: raise SOLVER.MAX_EPOCHS or MAX_ITER, or leave it as it is"
            )
        self.resumed = resume
        self.sampler.start = self.start_iter * self.cfg.SOLVER.ACCUMULATE
        if self.evaluation.best.out_of_patience:
            logger.warning(
                "this run stopped early, at iteration %d, and is not trained on; for that, raise "
                "TEST.EARLY_STOPPING.PATIENCE above %d",
                self.start_iter - 1,
                self.evaluation.best.without_gain,
            )
            self.max_iter = self.start_iter

    def train(self) -> OrderedDict[str, Any]:
        """Train to the end, or until there is no gain (``TEST.EARLY_STOPPING``).

        Returns:
            The scores of the last evaluation, on the main process; elsewhere an empty dict.
        """
        with contextlib.suppress(_StoppedEarly):
            super(DefaultTrainer, self).train(self.start_iter, self.max_iter)
        if not comm.is_main_process():
            return OrderedDict()
        if self.cfg.TEST.EXPECTED_RESULTS:
            verify_results(self.cfg, self.evaluation.results)
        return self.evaluation.results

    def before_train(self) -> None:
        """Get the hooks ready, and complete what a resumed run left open in its last iteration."""
        super().before_train()
        if self.start_iter > 0:
            self.iter = self.storage.iter = self.start_iter - 1
            for hook in self._hooks:
                if isinstance(hook, Evaluation | MetricRows | Checkpoints):
                    hook.after_step()  # leaves what is done already
            self.iter = self.storage.iter = self.start_iter
            self._leave_if_stopped()

    def after_step(self) -> None:
        """Run the hooks, and leave the loop where the evaluation says so."""
        super().after_step()
        self._leave_if_stopped()

    def _leave_if_stopped(self) -> None:
        if self.evaluation.best.out_of_patience:
            self.iter = self.max_iter  # as at the end of the loop
            raise _StoppedEarly

    def run_step(self) -> None:
        """Run one iteration, and log which epoch it belongs to."""
        with explain_training_memory(self.cfg):
            super().run_step()
        epoch = (self.iter + 1) / self.iterations_per_epoch
        self.storage.put_scalar("epoch", epoch, smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside the model."""
        return {**super().state_dict(), "step": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave; the learning rate is that of the config."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["step"])
        continue_schedule(self.scheduler)


def _prefixed(prefix: str, results: OrderedDict[str, Any]) -> OrderedDict[str, Any]:
    return OrderedDict((prefix + task, scores) for task, scores in results.items())
