"""Whole runs of a tiny model: train, evaluate, resume to the bit, predict as evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context

from cellseg_d2 import CellDataError, load_config
from cellseg_d2.engine import CellTrainer, register_datasets
from cellseg_d2.inference import CellPredictor


def write_discs(root: Path, images: int) -> None:
    """Bright discs of two classes, told apart by colour, on a dark ground."""
    for k in range(images):
        rng = np.random.default_rng(k)
        folder = root / "train" / f"image{k}"
        folder.mkdir(parents=True)
        image = rng.integers(0, 30, (64, 64, 3)).astype(np.uint8)
        labels = np.zeros((2, 64, 64), np.uint16)
        yy, xx = np.mgrid[:64, :64]
        for i, (x, y) in enumerate([(16, 16), (48, 16), (16, 48), (48, 48)], start=1):
            disc = (xx - x - rng.integers(-4, 5)) ** 2 + (yy - y) ** 2 < 81
            labels[i % 2][disc] = i
            image[disc] = (200, 40, 40) if i % 2 else (40, 40, 200)
        tifffile.imwrite(folder / "image.tif", image)
        for c in range(2):
            tifffile.imwrite(folder / f"class{c + 1}.tif", labels[c])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("discs")
    write_discs(folder, 6)
    return folder


@pytest.fixture
def cfg(root: Path, tmp_path: Path, repository: Path) -> CfgNode:
    return tiny_config(root, tmp_path / "run", repository)


def tiny_config(
    root: Path, output: Path, repository: Path, *options: object, epochs: int = 0
) -> CfgNode:
    cfg = load_config(
        repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml",
        [
            *("DATASETS.CELL.ROOT", str(root), "OUTPUT_DIR", str(output)),
            *("DATASETS.CELL.CLASS_NAMES", ["blue", "red"], "MODEL.ROI_HEADS.NUM_CLASSES", 2),
            *("DATASETS.CELL.VAL_FRACTION", 0.34, "INPUT.CROP.SIZE", [48, 48]),
            *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
            *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100),
            *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32),
            *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 1),
            *("SOLVER.CHECKPOINT_PERIOD", 2, "DATALOADER.NUM_WORKERS", 0),
            *("TEST.DETECTIONS_PER_IMAGE", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 100),
            *options,
        ],
    )
    cfg.SOLVER.MAX_EPOCHS = epochs
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    return cfg


class Interrupted(Exception):
    """Stands in for a job that is ended."""


class InterruptAt(HookBase):
    """Ends a run before an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise Interrupted


def train(cfg: CfgNode, resume: bool = False, kind: type = CellTrainer) -> CellTrainer:
    register_datasets(cfg)
    torch.manual_seed(0)
    trainer = kind(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def test_trains_evaluates_and_writes_its_files(cfg: CfgNode) -> None:
    before = CellTrainer.build_model(cfg).state_dict()
    trainer = train(cfg)
    output = Path(cfg.OUTPUT_DIR)
    results = trainer.evaluation.results
    assert set(results) == {"bbox", "segm", "panoptic"}
    assert {"AP", "AP50", "AP75", "AP-blue", "AP50-red"} <= set(results["segm"])
    assert {"model_0000001.pth", "model_final.pth", "metrics.json"} <= {
        p.name for p in output.iterdir()
    }
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert lines[-1]["iteration"] == 3
    assert {"loss_mask", "grad_norm", "epoch", "segm/AP50", "lr"} <= set().union(*lines)
    assert {"val/total_loss", "val/loss_mask", "val/loss_rpn_cls"} <= set(lines[-1])
    after = torch.load(output / "model_final.pth")["model"]
    moved = [
        k for k in before if before[k].is_floating_point() and not torch.equal(before[k], after[k])
    ]
    assert any("mask_head" in k for k in moved) and any("bottom_up" in k for k in moved)


def test_resuming_gives_the_weights_of_an_uninterrupted_run(
    root: Path, tmp_path: Path, repository: Path
) -> None:
    whole = tiny_config(root, tmp_path / "whole", repository)
    train(whole)
    halves = tiny_config(root, tmp_path / "halves", repository)
    register_datasets(halves)
    torch.manual_seed(0)
    trainer = CellTrainer(halves)
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([InterruptAt(3)])
    with pytest.raises(Interrupted):
        trainer.train()
    trainer = train(halves, resume=True)
    assert trainer.start_iter == 2
    ours = torch.load(tmp_path / "halves" / "model_final.pth")
    theirs = torch.load(tmp_path / "whole" / "model_final.pth")
    assert ours["iteration"] == theirs["iteration"] == 3
    for key, value in theirs["model"].items():
        assert torch.equal(value, ours["model"][key]), key
    for a, b in zip(
        theirs["trainer"]["step"]["optimizer"]["state"].values(),
        ours["trainer"]["step"]["optimizer"]["state"].values(),
        strict=True,
    ):
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])


def test_epochs_set_evaluation_and_checkpoints(
    root: Path, tmp_path: Path, repository: Path
) -> None:
    evaluated = []

    class Recording(CellTrainer):
        def test(self, cfg: CfgNode, model: torch.nn.Module) -> dict:
            evaluated.append(self.iter + 1)
            return {}

    cfg = tiny_config(root, tmp_path / "run", repository, epochs=2)
    trainer = train(cfg, kind=Recording)
    per_epoch = trainer.iterations_per_epoch
    assert trainer.max_iter == 2 * per_epoch == 4
    names = {p.name for p in (tmp_path / "run").glob("model_*.pth")}
    assert names == {
        f"model_{per_epoch - 1:07d}.pth",
        f"model_{2 * per_epoch - 1:07d}.pth",
        "model_final.pth",
    }
    assert evaluated == [per_epoch, 2 * per_epoch]
    assert trainer.storage.history("epoch").latest() == 2.0


def test_predictor_answers_as_the_evaluation_loop_does(cfg: CfgNode) -> None:
    trainer = train(cfg)
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    trainer.model.roi_heads.box_predictor.test_score_thresh = 0.0
    predictor = CellPredictor(cfg)
    loader = CellTrainer.build_test_loader(cfg, "cells_val")
    with inference_context(trainer.model), torch.no_grad():
        (item,) = next(iter(loader))
        (expected,) = trainer.model([item])
    expected = expected["instances"]
    answer = predictor(tifffile.imread(item["file_name"]))["instances"]
    assert len(answer) == len(expected) > 0
    assert torch.equal(answer.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(answer.scores, expected.scores)
    assert answer.pred_masks.rles == expected.pred_masks.rles
    assert answer.image_size == (64, 64)
    assert (answer.scores.diff() <= 0).all()


@pytest.mark.parametrize("bad", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_predictor_refuses_other_arrays(cfg: CfgNode, bad: np.ndarray) -> None:
    weights = Path(cfg.OUTPUT_DIR) / "model.pth"
    torch.save({"model": CellTrainer.build_model(cfg).state_dict()}, weights)
    cfg.MODEL.WEIGHTS = str(weights)
    with pytest.raises(ValueError, match="uint8"):
        CellPredictor(cfg)(bad)


def test_predictor_without_weights_says_what_to_add(cfg: CfgNode) -> None:
    with pytest.raises(CellDataError, match="add MODEL.WEIGHTS"):
        CellPredictor(cfg)


def test_missing_weights_are_named_before_training(cfg: CfgNode) -> None:
    cfg.MODEL.WEIGHTS = "weights/none.pkl"
    register_datasets(cfg)
    with pytest.raises(CellDataError, match=r"weights/none\.pkl.*from scratch"):
        CellTrainer(cfg).resume_or_load(resume=False)


def test_root_that_is_not_there(cfg: CfgNode) -> None:
    cfg.DATASETS.CELL.ROOT = "/no/such/folder"
    with pytest.raises(CellDataError, match="/no/such/folder.*DATASETS.CELL.ROOT"):
        register_datasets(cfg)


def test_registered_sets_are_disjoint_and_complete(cfg: CfgNode) -> None:
    register_datasets(cfg)
    names = {
        s: {d["image_id"] for d in DatasetCatalog.get(s)}
        for s in ("cells_train", "cells_val", "cells_trainval")
    }
    assert names["cells_train"].isdisjoint(names["cells_val"])
    assert names["cells_train"] | names["cells_val"] == names["cells_trainval"]
    assert len(names["cells_val"]) == 2


def test_images_of_rare_classes_come_up_more_often(
    root: Path, tmp_path: Path, repository: Path
) -> None:
    option = ("DATASETS.CELL.REPEAT_THRESHOLD", 1.0)
    cfg = tiny_config(root, tmp_path / "run", repository, *option, epochs=2)
    register_datasets(cfg)
    rare = DatasetCatalog.get("cells_train")
    assert CellTrainer.build_sampler(cfg).epoch_size == len(rare) == 4, "both classes everywhere"
    rare = [{**d, "kept_ids": {1: d["kept_ids"][1]}} for d in rare[1:]] + rare[:1]
    DatasetCatalog.remove("cells_train")
    DatasetCatalog.register("cells_train", lambda: rare)
    sampler = CellTrainer.build_sampler(cfg)
    # Class 0 is in one image of four: that image comes up twice.
    drawn = [sampler.index_at(position) for position in range(5)]
    assert np.bincount(drawn).tolist() == [1, 1, 1, 2]
    trainer = CellTrainer(cfg)
    assert trainer.iterations_per_epoch == 3  # five samples, two at a time
    DatasetCatalog.remove("cells_train")
