"""How the cost of each step grows with images, cells, pixels and classes.

The small model, in processor time; one is varied, the others stay in the middle. An exponent of 1
is growth in proportion, 0 is none.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from cellseg_d2.data import CellDatasetMapper, load_cell_dicts, register_cell_dataset
from cellseg_d2.engine.train_step import TrainStep
from cellseg_d2.evaluation import CellEvaluator
from cellseg_d2.inference import CellPredictor
from cellseg_d2.structures import RLEMasks
from cellseg_d2.visualization.colors import class_names

from .growth_plot import draw
from .sides.case import SMALL, model_config, write_images
from .sides.detectron import LEARNING_RATE, MOMENTUM, Trainer
from .timing import Figure

ROUNDS = 3


@dataclass(frozen=True)
class Setting:
    """A data set: ``images`` of ``pixels`` with ``cells`` each, in ``classes`` classes."""

    images: int = 2
    cells: int = 200
    pixels: int = 384**2
    classes: int = 4


AXES: dict[str, tuple[int, ...]] = {
    "images": (1, 2, 4, 8),
    "cells": (50, 100, 200, 400, 800),
    "pixels": (192**2, 272**2, 384**2, 544**2, 768**2),
    "classes": (1, 2, 4, 8, 16),
}


@dataclass
class Growth:
    """The seconds of one step along one axis.

    Attributes:
        step: what is timed.
        axis: what is varied, a field of ``Setting``.
        values: of the axis, ascending.
        seconds: of the step at each.
    """

    step: str
    axis: str
    values: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def exponent(self) -> float:
        """The slope of the straight line through the logarithms, by least squares."""
        return fit_exponent(self.values, self.seconds)


def run(plot: Path | None = None) -> Iterator[Figure]:
    """Yield the exponent of each step along each axis.

    Args:
        plot: PNG to draw all measurements into; None for none.
    """
    lines: list[Growth] = []
    for axis, values in AXES.items():
        along: dict[str, Growth] = {}
        for value in values:
            for step, seconds in measure(replace(Setting(), **{axis: value})).items():
                line = along.setdefault(step, Growth(step, axis))
                line.values.append(value)
                line.seconds.append(seconds)
        for line in along.values():
            yield describe(line)
        lines += along.values()
    if plot is not None:
        draw(lines, plot)


def fit_exponent(values: list[int], seconds: list[float]) -> float:
    """Return b of ``seconds = a * values**b``, by least squares of the logarithms."""
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])


def describe(line: Growth) -> Figure:
    """Return the exponent, and between what it was fitted."""
    return Figure(
        f"{line.step}, by {line.axis}",
        line.exponent,
        f"exponent: {1e3 * line.seconds[0]:.1f} to {1e3 * line.seconds[-1]:.1f} ms "
        f"from {line.values[0]:,} to {line.values[-1]:,}",
    )


def measure(setting: Setting) -> dict[str, float]:
    """Return the seconds of each step over all images of a data set."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        side = round(setting.pixels**0.5)
        write_images(root / "data", setting.images, setting.cells, side, setting.classes)
        steps = {
            "parse": lambda: load_cell_dicts(root / "data", num_classes=setting.classes),
            **_model_steps(root, setting),
        }
        with _evaluation(root, setting) as evaluate:
            steps["evaluate"] = evaluate
            seconds = {}
            for step, function in steps.items():
                function()
                seconds[step] = processor_seconds(function)
    return seconds


def processor_seconds(function: Callable[[], Any]) -> float:
    """Return the median seconds of processor time, to which other programs do not add."""
    times = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def _model_steps(root: Path, setting: Setting) -> dict[str, Callable[[], Any]]:
    """Sample, train on and predict each image, one at a time."""
    options = {
        "MODEL.ROI_HEADS.NUM_CLASSES": setting.classes,
        "DATASETS.CELL.CLASS_NAMES": class_names(setting.classes),
    }
    cfg = model_config(SMALL, setting.cells, **options)
    records = load_cell_dicts(root / "data", num_classes=setting.classes)
    torch.manual_seed(0)
    model = build_model(cfg)
    weights = root / "weights.pth"
    torch.save({"model": model.state_dict()}, weights)
    mapper = CellDatasetMapper(cfg, is_train=True)
    batches = ([mapper(record, 0)] for record in itertools.cycle(records))
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
    train = Trainer(TrainStep(model, batches, optimizer, seed=0))
    predictor = CellPredictor(cfg, [str(weights)])
    return {
        "sample": lambda: [mapper(record, 0) for record in records],
        "training step": lambda: [train() for _ in records],
        "predict": lambda: [list(predictor.predict_all([r["file_name"]])) for r in records],
    }


@contextmanager
def _evaluation(root: Path, setting: Setting) -> Iterator[Callable[[], Any]]:
    """Score the ground truth as if it had been predicted, with scores at random."""
    name = f"growth_{setting}"
    names = class_names(setting.classes)
    register_cell_dataset(name, root / "data", class_names=names)
    generator = np.random.default_rng(0)
    try:
        records = DatasetCatalog.get(name)
        evaluator = CellEvaluator(name, max_detections=setting.cells, distributed=False)
        evaluator.process(
            records, [{"instances": _as_predicted(record, generator)} for record in records]
        )
        yield evaluator.evaluate
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _as_predicted(record: dict[str, Any], generator: np.random.Generator) -> Instances:
    size = (record["height"], record["width"])
    annotations = record["annotations"]
    scores = generator.uniform(0.5, 1, len(annotations)).astype(np.float32)
    return Instances(
        size,
        pred_boxes=Boxes(torch.tensor([a["bbox"] for a in annotations]).float()),
        scores=torch.from_numpy(scores),
        pred_classes=torch.tensor([a["category_id"] for a in annotations]),
        pred_masks=RLEMasks([a["segmentation"] for a in annotations], size),
    )
