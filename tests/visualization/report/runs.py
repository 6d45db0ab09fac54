"""Runs made without a model: a synthetic data set, answers of middling quality, a true evaluation.

Names of images and classes are such as would break a page that trusts them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from cellseg_d2 import load_config
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset
from cellseg_d2.engine import register_datasets
from cellseg_d2.engine.run_record import write_run_record
from cellseg_d2.evaluation import CellEvaluator, write_scores
from cellseg_d2.evaluation.image_result import shown_predictions
from cellseg_d2.structures import RLEMasks
from cellseg_d2.visualization.report.sources import EVALUATION_FOLDER, RunSources

HOSTILE_CLASS = "<script>alert(1)</script>"
HOSTILE_IMAGE = '"><img src=x onerror=alert(2)>'
CLASSES = ["lymphocyte", HOSTILE_CLASS, "rare & odd", "d"]

# Scores of each image that equal steps of the slider; in floats 100 times they are less than whole.
STEP_SCORES = [0.29, 0.57]


def make_run(folder: Path, repository: Path, panoptic: bool = True) -> Path:
    """Write the data set and the run; return the run's folder."""
    data, run = folder / "data", folder / "run"
    write_dataset(data, SyntheticParameters(train=5, test=0, size=(80, 120), cells=(8, 16)))
    first = sorted((data / "train").iterdir())[0]
    first.rename(first.with_name(HOSTILE_IMAGE))
    cfg = load_config(
        repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml",
        [
            *("DATASETS.CELL.ROOT", str(data), "OUTPUT_DIR", str(run)),
            *("DATASETS.CELL.CLASS_NAMES", repr(CLASSES), "INPUT.CELL.CHANNEL_ORDER", "BGR"),
            *("DATASETS.TEST", "('cells_trainval',)", "MODEL.DEVICE", "cpu"),
        ],
    )
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(cfg.dump())
    register_datasets(cfg)
    write_run_record(cfg, command=["train_net.py", "--config-file", "</script><b>.yaml"])
    rows = [
        {"iteration": 20 * i + 19, "total_loss": 3 / (i + 1), "lr": 0.01, "epoch": i / 2}
        for i in range(12)
    ]
    rows[-1] |= {"segm/AP": 20.0, "segm/AP50": 40.0, f"segm/AP-{CLASSES[0]}": 30.0}
    (run / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(cfg, panoptic=panoptic)
    return run


def evaluate(cfg: CfgNode, seed: int = 0, panoptic: bool = True) -> None:
    """Score answers to the run's data set, and write what an evaluation writes."""
    name, rng = cfg.DATASETS.TEST[0], np.random.default_rng(seed)
    run = Path(cfg.OUTPUT_DIR)
    evaluator = CellEvaluator(
        name,
        max_detections=100,
        panoptic=panoptic,
        output_dir=run / EVALUATION_FOLDER / name,
        distributed=False,
    )
    evaluator.reset()
    for item in DatasetCatalog.get(name):
        evaluator.process([item], [{"instances": answer(rng, item)}])
    write_scores(evaluator.evaluate(), run / "scores.json")


def answer(rng: np.random.Generator, item: dict) -> Instances:
    """Find most of an image's cells, some moved or of a wrong class, and some that are none."""
    size = (item["height"], item["width"])
    rles, scores, classes = [], [], []
    for annotation in item["annotations"]:
        if rng.uniform() < 0.2:
            continue
        mask = mask_utils.decode(annotation["segmentation"])
        shift = rng.choice([0, 1, 2, 9], 2, p=[0.5, 0.2, 0.15, 0.15])
        rles.append(mask_utils.encode(np.asfortranarray(np.roll(mask, shift, (0, 1)))))
        wrong = rng.uniform() < 0.2
        classes.append(int(rng.integers(4)) if wrong else annotation["category_id"])
        scores.append(round(float(rng.uniform()), 2))  # ties happen
    scores[:2] = STEP_SCORES
    boxes = mask_utils.toBbox(rles) if rles else np.zeros((0, 4))
    boxes[:, 2:] += boxes[:, :2]
    return Instances(
        size,
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.tensor(scores, dtype=torch.float64),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
        pred_masks=RLEMasks(rles, size),
    )


def shown_cells(run: RunSources) -> dict[int, list[dict]]:
    """The predictions that a report is to show, by image id."""
    return {
        image_id: shown_predictions(run.predictions[image_id], (item["height"], item["width"]))
        for image_id, item in run.dicts.items()
    }
