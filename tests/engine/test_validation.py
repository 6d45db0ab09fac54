"""Losses on validation images: the value by hand, and that measuring leaves no trace."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import StochasticDepth

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.data import CellDatasetMapper
from cellseg_d2.engine import CellTrainer, register_datasets
from cellseg_d2.engine.train_step import mix_seed
from cellseg_d2.engine.validation import ValidationLosses, loss_mode, unaugmented


def test_equals_a_run_by_hand(tiny) -> None:
    cfg = tiny("TEST.LOSS_IMAGES", 2, "INPUT.CELL.RECIPE", "report5")
    torch.manual_seed(0)
    model = CellTrainer.build_model(cfg)
    losses = ValidationLosses(cfg)(model)
    mapper = CellDatasetMapper(unaugmented(cfg), is_train=True)
    each = []
    model.features[0].train()
    model.features[1].eval()
    model.features[2].eval()
    with EventStorage():
        for index, item in enumerate(DatasetCatalog.get("cells_val")):
            sample = mapper(item)
            assert sample["image"].shape[1:] == (item["height"], item["width"]), "not cropped"
            assert len(sample["instances"]) == len(item["annotations"])
            torch.manual_seed(mix_seed(cfg.SEED, index))
            each.append({k: v.item() for k, v in model([sample]).items()})
    assert len(each) == 2 and each[0] != each[1]
    assert losses == {
        "val/total_loss": pytest.approx(sum(sum(e.values()) for e in each) / 2, rel=1e-12),
        "val/loss_cls": pytest.approx(sum(e["loss_cls"] for e in each) / 2, rel=1e-12),
        "val/loss_mask": pytest.approx(sum(e["loss_mask"] for e in each) / 2, rel=1e-12),
    }


def test_nothing_changes_and_the_same_is_drawn_again(tiny) -> None:
    cfg = tiny("TEST.LOSS_IMAGES", 2)
    model = CellTrainer.build_model(cfg)
    model.frozen.eval()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    losses = ValidationLosses(cfg)
    with EventStorage() as storage:
        torch.manual_seed(5)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        first, second = losses(model), losses(model)
        after = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert first == second
    assert not storage.latest(), "counts of proposals are the training's"
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1]) and before[2] == after[2]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_modes_are_put_back_after_an_error() -> None:
    model = nn.ModuleDict(
        {
            "block": nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()),
            "drop": StochasticDepth(0.5, "row"),
        }
    )
    model["block"][0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    with pytest.raises(KeyError), loss_mode(model):
        found = {name: module.training for name, module in model.named_modules()}
        assert found == {"": True, "block": True, "block.0": False, "block.1": False, "drop": False}
        raise KeyError
    assert {name: module.training for name, module in model.named_modules()} == modes
    model.eval()
    with loss_mode(model):
        assert model.training and not model["drop"].training
    assert not any(module.training for module in model.modules())


def test_training_goes_on_as_without(tiny, train, same) -> None:
    trainers = [train(tiny("TEST.LOSS_IMAGES", count, output=f"run{count}")) for count in (0, 2)]
    without, measured = (torch.load(Path(t.cfg.OUTPUT_DIR, "model_final.pth")) for t in trainers)
    assert same(without["model"], measured["model"])
    assert same(without["trainer"]["step"], measured["trainer"]["step"])
    assert "val/total_loss" in trainers[1].storage.latest()
    assert "val/total_loss" not in trainers[0].storage.latest()
    seen = trainers[1].model.seen
    validation = {item["file_name"] for item in DatasetCatalog.get("cells_val")}
    assert sum(name in validation for name in seen) == 2 * 3, "two images, three evaluations"


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_figure_is_the_same_for_any_number_of_processes(tiny, monkeypatch, ranks: int) -> None:
    cfg = tiny("TEST.LOSS_IMAGES", 2)
    torch.manual_seed(0)
    model, losses = CellTrainer.build_model(cfg), ValidationLosses(cfg)
    expected = losses(model)
    parts: list[object] = []

    def gather(part: object) -> list[object]:
        parts.append(part)
        return list(reversed(parts))

    monkeypatch.setattr(comm, "get_world_size", lambda: ranks)
    monkeypatch.setattr(comm, "all_gather", gather)
    for rank in range(ranks):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        found = losses(model)
    assert found == expected
    assert [len(part) for part in parts] == [1, 1, 0][:ranks], "a process without an image too"


def test_several_sets_are_told_apart(tiny) -> None:
    cfg = tiny("DATASETS.TEST", ("cells_val", "cells_train"), "TEST.LOSS_IMAGES", 1)
    found = ValidationLosses(cfg)(CellTrainer.build_model(cfg))
    assert {name.rsplit("/", 1)[0] for name in found} == {"cells_val/val", "cells_train/val"}
    assert found["cells_val/val/loss_cls"] != found["cells_train/val/loss_cls"]


@pytest.mark.parametrize("options", [("TEST.LOSS_IMAGES", 0), ("DATASETS.TEST", ())])
def test_no_images_no_losses(tiny, options: tuple) -> None:
    cfg = tiny(*options)
    assert ValidationLosses(cfg)(CellTrainer.build_model(cfg)) == {}
    with pytest.raises(ConfigError, match=r"TEST\.LOSS_IMAGES"):
        ValidationLosses(tiny("TEST.LOSS_IMAGES", -1))


@pytest.mark.parametrize("auxiliary", [False, True])
def test_losses_of_a_mask_rcnn(cells: Path, repository: Path, tmp_path: Path, auxiliary) -> None:
    """With BatchNorm that trains, and with the heads that need targets of their own."""
    cfg = load_config(
        repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml",
        [
            *("DATASETS.CELL.ROOT", str(cells), "OUTPUT_DIR", str(tmp_path)),
            *("DATASETS.CELL.VAL_FRACTION", 0.34, "DATALOADER.NUM_WORKERS", 0),
            *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
            *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50),
            *("MODEL.RESNETS.NORM", "BN", "MODEL.CENTER_BOUNDARY_HEAD.ENABLED", auxiliary),
            *("MODEL.DEVICE", "cpu", "TEST.LOSS_IMAGES", 1),
        ],
    )
    register_datasets(cfg)
    model = CellTrainer.build_model(cfg)
    state = copy.deepcopy(model.state_dict())
    losses = ValidationLosses(cfg)
    first = losses(model)
    names = {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    names |= {"loss_center", "loss_boundary"} if auxiliary else set()
    assert first.keys() == {f"val/{name}" for name in (*names, "total_loss")}
    assert all(np.isfinite(value) for value in first.values())
    assert first["val/total_loss"] == pytest.approx(sum(first[f"val/{name}"] for name in names))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert losses(model) == first
