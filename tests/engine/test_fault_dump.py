"""A fault's message and file, and that the file repeats the fault."""

from __future__ import annotations

import copy
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from cellseg_d2 import CellDataError, load_config
from cellseg_d2.data.dataset_mapper import build_instances
from cellseg_d2.data.synthetic import SyntheticParameters, write_dataset
from cellseg_d2.engine import CellTrainer, register_datasets
from cellseg_d2.engine.fault_dump import (
    Fault,
    FaultDump,
    NonFiniteError,
    StreamBatch,
    describe_fault,
    pack_sample,
    read_fault,
    unpack_sample,
)
from cellseg_d2.engine.fault_replay import replay
from cellseg_d2.engine.train_step import TrainStep


def tiny_config(repository: Path, output: Path, *options: object) -> CfgNode:
    return load_config(
        repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml",
        [
            *("MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(output), "MODEL.FPN.OUT_CHANNELS", 16),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
            *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16),
            *("MODEL.CENTER_BOUNDARY_HEAD.ENABLED", False, *options),
        ],
    )


def sample(name: str, seed: int, cells: int = 6) -> dict:
    rng = np.random.default_rng(seed)
    labels = np.zeros((64, 64), np.int32)
    for k in range(cells):
        labels[4 + 28 * (k // 3) :, 2 + 20 * (k % 3) :][:12, :14] = k + 1
    return {
        "image": torch.from_numpy(rng.integers(0, 255, (3, 64, 64)).astype(np.uint8)),
        "instances": build_instances([labels], [0], {0: np.arange(1, cells + 1)}, (64, 64)),
        "file_name": name,
        "image_id": seed,
        "height": 64,
        "width": 64,
    }


@pytest.fixture
def cfg(repository: Path, tmp_path: Path) -> CfgNode:
    return tiny_config(repository, tmp_path / "run")


def run_to_fault(
    cfg: CfgNode, model: torch.nn.Module, batches: list, iteration: int, accumulate: int = 1
) -> str:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    faults = FaultDump(cfg.OUTPUT_DIR, cfg)
    step = TrainStep(model, batches, optimizer, accumulate=accumulate, seed=cfg.SEED, faults=faults)
    step.iter = iteration
    with EventStorage(iteration), pytest.raises(NonFiniteError) as caught:
        step.run_step()
    return str(caught.value)


def test_a_poisoned_weight_is_named_and_repeated(cfg: CfgNode) -> None:
    torch.manual_seed(1)
    model = build_model(cfg)
    with torch.no_grad():
        model.roi_heads.mask_head.predictor.bias.fill_(math.nan)
    batches = [[sample("a.tif", 0), sample("b.tif", 1)], [sample("c.tif", 2), sample("d.tif", 3)]]
    message = run_to_fault(cfg, model, batches, iteration=4, accumulate=2)
    path = Path(cfg.OUTPUT_DIR) / "nonfinite_0000004.pth"
    for text in (
        "iteration 4: a loss is not finite",
        "batch 8: ",
        "loss_mask nan",
        "position 16: a.tif",
        "position 19: d.tif",
        f"python tools/replay_fault.py {path}",
    ):
        assert text in message
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing half-written, no model"
    found = replay(path)
    assert found.error == "" and len(found.losses) == len(found.recorded) == 2
    for now, then in zip(found.losses, found.recorded, strict=True):
        assert list(now) == list(then) and "loss_mask" in now
        for name, value in then.items():
            assert math.isnan(value) == (name == "loss_mask")
            assert now[name] == pytest.approx(value, rel=1e-6, nan_ok=True), name
    assert math.isnan(found.gradient_norm)
    assert "roi_heads.mask_head.predictor.weight" in found.parameters
    assert "roi_heads.box_predictor.cls_score.bias" not in found.parameters


def test_a_poisoned_image_is_named_and_repeated(cfg: CfgNode) -> None:
    bad = sample("bad.tif", 5)
    bad["image"] = bad["image"].float()
    bad["image"][0, 3, 3] = math.nan
    message = run_to_fault(cfg, build_model(cfg), [[sample("good.tif", 1), bad]], iteration=0)
    assert "position 1: bad.tif" in message
    found = replay(Path(cfg.OUTPUT_DIR) / "nonfinite_0000000.pth")
    not_finite = [value for each in found.losses for value in each.values() if value != value]
    assert not_finite or found.error
    assert found.error.split(".")[0] in message


def test_a_gradient_is_repeated_over_all_batches(cfg: CfgNode) -> None:
    torch.manual_seed(1)
    model = build_model(cfg)
    with torch.no_grad():  # a finite loss whose gradient overflows
        model.roi_heads.box_head.fc1.weight.zero_()
        model.roi_heads.box_head.fc1.bias.fill_(1e-38)
        model.roi_heads.box_head.fc2.weight.fill_(3e38)
        model.roi_heads.box_predictor.cls_score.weight.normal_(std=10)
    message = run_to_fault(
        cfg, model, [[sample("a.tif", 0)], [sample("b.tif", 1)]], iteration=2, accumulate=2
    )
    assert "iteration 2: the gradient is not finite" in message
    assert "position 4: a.tif" in message and "position 5: b.tif" in message
    found = replay(Path(cfg.OUTPUT_DIR) / "nonfinite_0000002.pth")
    assert not math.isfinite(found.gradient_norm)
    for now, then in zip(found.losses, found.recorded, strict=True):
        assert now == pytest.approx(then, rel=1e-6)
    assert any("fc1" in name for name in found.parameters)


@pytest.mark.parametrize("cells", [0, 3])
def test_a_sample_is_packed_without_loss(cells: int) -> None:
    before = {**sample("a.tif", 1, cells), "center_map": torch.rand(64, 64)}
    packed = pack_sample(before)
    assert not isinstance(packed["instances"], Instances)
    after = unpack_sample(packed)
    assert after["file_name"] == "a.tif" and torch.equal(after["center_map"], before["center_map"])
    ours, theirs = after["instances"], before["instances"]
    assert ours.image_size == theirs.image_size and len(ours) == len(theirs) == cells
    assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
    assert torch.equal(ours.gt_classes, theirs.gt_classes)
    assert torch.equal(ours.gt_masks.to_bit_masks().tensor, theirs.gt_masks.to_bit_masks().tensor)
    assert pack_sample(7) == 7 and unpack_sample({"image": 1}) == {"image": 1}


def test_the_message_of_a_fault_without_losses() -> None:
    batch = StreamBatch(3, 1, (6, 7), [{"file_name": "x.tif"}, {}])
    text = describe_fault(Fault(3, "the forward pass", [batch], [{}], "boxes contain NaN"))
    assert text.splitlines() == [
        "iteration 3: the forward pass is not finite (boxes contain NaN)",
        "  batch 3: no loss",
        "    position 6: x.tif",
        "    position 7: unnamed",
    ]


def test_a_full_disk_does_not_hide_the_fault(cfg: CfgNode, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    dump = FaultDump(tmp_path / "file", cfg)  # no folder can be made here
    fault = Fault(3, "a loss", [], [], "")
    with pytest.raises(OSError, match="(?s)iteration 3: a loss is not finite.*not be written"):
        dump.write(fault, torch.nn.Linear(1, 1))


def test_another_file_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "model.pth")
    with pytest.raises(CellDataError, match="nonfinite_<iteration>"):
        read_fault(tmp_path / "model.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CellDataError):
        read_fault(tmp_path / "text.pth")


def test_the_tool_prints_then_and_now(
    cfg: CfgNode, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location(
        "replay_fault", repository / "tools" / "replay_fault.py"
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    model = build_model(cfg)
    with torch.no_grad():
        model.roi_heads.mask_head.predictor.bias.fill_(math.nan)
    run_to_fault(cfg, model, [[sample("a.tif", 0)]], iteration=1)
    path = Path(cfg.OUTPUT_DIR) / "nonfinite_0000001.pth"
    assert tool.main([str(path)]) == 0
    output = capsys.readouterr().out
    assert "loss_mask: nan (training: nan)" in output and "gradient norm: nan" in output
    assert "gradient not finite: roi_heads.mask_head.predictor.bias" in output
    assert tool.main([str(path.with_name("none.pth"))]) == 1
    assert "error: " in capsys.readouterr().err
    assert tool.main([str(path), "--device", "nonsense"]) == 2
    assert "error: MODEL.DEVICE 'nonsense' is no device" in capsys.readouterr().err
    assert tool.main([str(path), "--device", "meta"]) == 2  # a device that computes nothing
    assert "error: MODEL.DEVICE 'meta' is not to be had here" in capsys.readouterr().err


@pytest.mark.parametrize("last", [False, True])
def test_a_training_stops_and_saves_nothing_after_the_fault(
    repository: Path, tmp_path: Path, last: bool
) -> None:
    """Also in the last iteration, after which upstream's hooks would evaluate."""
    root = tmp_path / "data"
    write_dataset(root, SyntheticParameters(train=4, test=0, size=(64, 64), cells=(4, 6)))
    cfg = tiny_config(
        repository,
        tmp_path / "run",
        *("DATASETS.CELL.ROOT", str(root), "DATASETS.TEST", (), "INPUT.CROP.SIZE", [48, 48]),
        *("SOLVER.MAX_ITER", 3 if last else 9, "SOLVER.CHECKPOINT_PERIOD", 1),
        *("SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0),
    )
    register_datasets(cfg)
    trainer = CellTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer._trainer.faults = FaultDump(cfg.OUTPUT_DIR, cfg)
    run_step = trainer._trainer.run_step
    before = {}

    def poison() -> None:
        if trainer.iter == 2:
            bias = trainer.model.roi_heads.mask_head.predictor.bias
            before.update(copy.deepcopy(dict(trainer.model.named_parameters())))
            torch.nn.init.constant_(bias, math.inf)
        run_step()

    trainer._trainer.run_step = poison
    with pytest.raises(NonFiniteError, match="iteration 2: "):
        trainer.train()
    names = {path.name for path in (tmp_path / "run").glob("*.pth")}
    assert names == {"model_0000000.pth", "model_0000001.pth", "nonfinite_0000002.pth"}
    for name, value in trainer.model.named_parameters():
        if not name.endswith("mask_head.predictor.bias"):
            assert torch.equal(value, before[name])
