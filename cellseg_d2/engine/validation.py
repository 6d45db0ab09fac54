"""The losses of a model in training on images that it is not trained on, as they are."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..data import CellDatasetMapper
from ..data.loader import FaultRaisingLoader, KeepFaults, MappedStream
from ..errors import ConfigError
from .data_sets import data_set_dicts, without_annotations
from .train_step import mix_seed

logger = logging.getLogger(__name__)


class ValidationLosses:
    """The training losses on the first ``TEST.LOSS_IMAGES`` of each set of ``DATASETS.TEST``.

    Images are whole and not augmented, one at a time. The model computes its losses with layers
    that behave otherwise in training (BatchNorm, dropout, stochastic depth) as in inference. The
    proposals that losses are computed on are drawn by (seed, image), the same at every evaluation
    and on any number of processes, and no random number of the training is used up.

    Args:
        cfg: as a run has it, with its data sets registered.
    """

    def __init__(self, cfg: CfgNode) -> None:
        count = cfg.TEST.LOSS_IMAGES
        if count < 0:
            raise ConfigError(f"TEST.LOSS_IMAGES is {count}; at least 0")
        self.seed = cfg.SEED
        self.num_workers = cfg.DATALOADER.NUM_WORKERS
        self.sets: dict[str, list[dict[str, Any]]] = {}
        if count and cfg.DATASETS.TEST:
            self.sets = {name: data_set_dicts([name])[:count] for name in cfg.DATASETS.TEST}
            self.mapper = CellDatasetMapper(unaugmented(cfg), is_train=True)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Compute the losses; the model, its statistics and all random states stay as they are.

        Args:
            model: as it trains, wrapped for several processes or not.

        Returns:
            ``val/total_loss`` and ``val/<loss>`` for each loss, means over the images; of several
            data sets, ``<set>/val/…``. The same on every process.
        """
        if isinstance(model, DistributedDataParallel):
            model = model.module
        prefixes = {name: f"{name}/val" if len(self.sets) > 1 else "val" for name in self.sets}
        return {
            f"{prefixes[name]}/{loss}": value
            for name, dicts in self.sets.items()
            for loss, value in self._mean_losses(model, dicts).items()
        }

    def _mean_losses(self, model: nn.Module, dicts: list[dict[str, Any]]) -> dict[str, float]:
        mine = range(comm.get_rank(), len(dicts), comm.get_world_size())
        losses = list(zip(mine, self._losses(model, dicts, mine), strict=True))
        # In the order of the images, so that the sums are the same for any number of processes.
        gathered = dict(sorted(pair for part in comm.all_gather(losses) for pair in part))
        each = list(gathered.values())
        return {name: math.fsum(one[name] for one in each) / len(each) for name in each[0]}

    def _losses(
        self, model: nn.Module, dicts: list[dict[str, Any]], indices: range
    ) -> Iterator[dict[str, float]]:
        loader: DataLoader[list[Any]] = DataLoader(
            MappedStream(without_annotations(dicts), KeepFaults(self.mapper)),
            sampler=[(index, 0) for index in indices],
            num_workers=self.num_workers,
            collate_fn=list,
            generator=torch.Generator(),  # its own: a loader draws a seed for its workers
        )
        device = next(model.parameters()).device
        devices = [device] if device.type == "cuda" else []
        # The model notes counts of proposals as it computes losses: those are not the training's.
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices),
            loss_mode(model),
            EventStorage(),
        ):
            for index, batch in zip(indices, FaultRaisingLoader(loader), strict=True):
                torch.manual_seed(mix_seed(self.seed, index))
                losses = {name: loss.item() for name, loss in model(batch).items()}
                yield {"total_loss": math.fsum(losses.values()), **losses}


@contextlib.contextmanager
def loss_mode(model: nn.Module) -> Iterator[None]:
    """Let a model compute losses for a while with its layers as in inference.

    Modules with parts decide by their mode what to compute (losses or detections); those without
    are layers, and some of them (BatchNorm, dropout, stochastic depth) change or draw something
    when they train.

    Args:
        model: each of its modules has its own mode again afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module in model.modules():
        if next(module.children(), None) is None:
            module.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def unaugmented(cfg: CfgNode) -> CfgNode:
    """Return a config whose training images are as they are in a test: whole, not augmented."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.CELL.RECIPE = "none"
    cfg.INPUT.CELL.COPY_PASTE.CLASSES = []
    cfg.INPUT.MIN_SIZE_TRAIN = (cfg.INPUT.MIN_SIZE_TEST,)
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    return cfg
