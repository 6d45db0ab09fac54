"""Loading of configs, and every file in configs/: it merges, builds, takes a step and predicts."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.config import require_fixed_normalization
from cellseg_d2.data.dataset_mapper import build_instances
from cellseg_d2.data.target_generator import CenterBoundaryTargets
from cellseg_d2.modeling.parameter_count import count_parameters
from cellseg_d2.structures import RLEMasks

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert {"Base-CellSeg", "mask_rcnn_R_50_FPN", "mask_rcnn_R_18_FPN_small"} <= {
        path.stem for path in CONFIGS
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_merges_freezes_and_survives_being_saved(path: Path, tmp_path: Path) -> None:
    cfg = load_config(path)
    cfg.freeze()
    saved = tmp_path / "config.yaml"
    saved.write_text(cfg.dump())
    assert yaml.safe_load(load_config(saved).dump()) == yaml.safe_load(cfg.dump())


def small(cfg: CfgNode) -> CfgNode:
    """The same model, narrow, and from scratch."""
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.CONVNEXT.SIZE = "tiny"
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.CENTER_BOUNDARY_HEAD.CONV_DIM = 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 50
    return cfg


def sample(cfg: CfgNode, seed: int = 0) -> dict:
    labels = np.zeros((64, 80), np.int32)
    labels[5:20, 5:25] = 1
    labels[30:50, 40:70] = 9
    return pack(cfg, build_instances([labels], [0], {0: np.array([1, 9])}, (64, 80)), seed)


def empty(cfg: CfgNode) -> dict:
    return pack(cfg, build_instances([], [], {}, (64, 80)), seed=1)


def pack(cfg: CfgNode, instances: Instances, seed: int) -> dict:
    """What the mapper makes of an image of noise."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 255, (3, 64, 80), dtype=torch.uint8, generator=generator)
    mapped = {"image": image, "instances": instances, "height": 64, "width": 80}
    if cfg.MODEL.CENTER_BOUNDARY_HEAD.ENABLED:
        mapped |= CenterBoundaryTargets()(instances.gt_masks)
    return mapped


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_trains_a_step_and_predicts(path: Path) -> None:
    cfg = small(load_config(path))
    torch.manual_seed(0)
    model = build_model(cfg)
    with EventStorage():
        losses = model([sample(cfg), empty(cfg)])
    total = sum(losses.values())
    assert torch.isfinite(total) and "loss_mask" in losses
    total.backward()
    untouched = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not untouched
    with torch.no_grad():
        (answer,) = model.eval()([{"image": sample(cfg)["image"], "height": 128, "width": 160}])
    instances = answer["instances"]
    assert isinstance(instances.pred_masks, RLEMasks)
    assert instances.image_size == instances.pred_masks.image_size == (128, 160)
    assert len(instances) > 0


# Millions of parameters of each full model. Base names no weights, so its norms train and count.
PARAMETERS = {
    "Base-CellSeg": 44.0,
    "cascade_X_101_FPN": 129.5,
    "cascade_convnext_B_FPN": 135.4,
    "cellseg_best": 15.1,
    "mask_rcnn_R_18_FPN_small": 12.4,
    "mask_rcnn_R_50_FPN": 43.9,
    "pointrend_R_50_FPN": 55.9,
    "report1_R_50_FPN_adamw": 43.9,
    "report1_R_50_FPN_sgd": 43.9,
    "report1_R_50_FPN_v2_adamw": 45.9,
    "report2_R_50_FPN_bce": 43.9,
    "report2_R_50_FPN_dice": 43.9,
    "report3_R_50_FPN": 43.9,
    "report3_R_50_FPN_center_boundary": 45.1,
    "report4_CBAM_R_50_FPN": 44.6,
    "report4_R_50_C4": 35.1,
    "report4_R_50_FPN": 43.9,
    "report5_R_50_FPN": 33.3,
    "report5_convnext_B_FPN": 96.9,
    "report5_convnext_B_FPN_aug": 96.9,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_full_model_has_its_parameters(path: Path) -> None:
    assert path.stem in PARAMETERS, f"add its size: {count_parameters(load_config(path)) / 1e6:.1f}"
    assert count_parameters(load_config(path)) / 1e6 == pytest.approx(
        PARAMETERS[path.stem], abs=0.05
    )


def test_one_number_caps_the_detections(caplog) -> None:
    with caplog.at_level(logging.INFO):
        cfg = load_config(options=["TEST.DETECTIONS_PER_IMAGE", "3000"])
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST == 3000
    assert cfg.MODEL.RPN.PRE_NMS_TOPK_TEST >= 3000
    assert "POST_NMS_TOPK_TEST" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "CLASS_NAMES names 4.*NUM_CLASSES is 3"),
        (["INPUT.CELL.CHANNEL_ORDER", "GBR"], "CHANNEL_ORDER is 'GBR'"),
        (["INPUT.FORMAT", "YUV"], "INPUT.FORMAT is 'YUV'"),
        (["SOLVER.ACCUMULATE", "0"], "ACCUMULATE is 0; expected at least 1"),
        (["SOLVER.MAX_ITER", "0"], "MAX_ITER is 0; expected at least 1"),
        (["SOLVER.MAX_EPOCHS", "-1"], "MAX_EPOCHS is -1"),
        (["SOLVER.CHECKPOINT_EPOCHS", "-1"], "CHECKPOINT_EPOCHS is -1"),
        (["SOLVER.CHECKPOINT_PERIOD", "-1"], "CHECKPOINT_PERIOD is -1"),
        (["SOLVER.KEEP_CHECKPOINTS", "-1"], "KEEP_CHECKPOINTS is -1"),
        (["SOLVER.EMA.DECAY", "1"], r"EMA\.DECAY is 1\.0; expected at least 0 and below 1"),
        (["SOLVER.EMA.DECAY", "nan"], r"EMA\.DECAY is nan"),
        (
            ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0"],
            "CLIP_VALUE is 0.0; expected above 0",
        ),
        (["TEST.EVAL_EPOCHS", "-1"], "EVAL_EPOCHS is -1"),
        (["TEST.EVAL_PERIOD", "-1"], "EVAL_PERIOD is -1"),
        (["TEST.LOSS_IMAGES", "-1"], "LOSS_IMAGES is -1"),
        (["TEST.TRAIN_IMAGES", "-1"], "TRAIN_IMAGES is -1"),
        (["TEST.EARLY_STOPPING.PATIENCE", "-1"], "PATIENCE is -1"),
        (["TEST.EARLY_STOPPING.MIN_GAIN", "nan"], "MIN_GAIN is nan"),
        (["DATALOADER.NUM_WORKERS", "-1"], "NUM_WORKERS is -1"),
        (["MODEL.DEVICE", "nonsense"], "MODEL.DEVICE 'nonsense' is no device"),
    ],
)
def test_values_that_do_not_fit_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(options=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["INPUT.CELL.RECIPES", "none"], "RECIPES"),
        (["INPUT.CELL.RECIPE"], "INPUT.CELL.RECIPE"),
        (["SOLVER.MAX_ITER", "many"], "MAX_ITER"),
    ],
)
def test_options_that_are_no_keys_and_values_are_refused(options: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(options=options)


@pytest.mark.parametrize(
    ("text", "message"),
    [("MODEL:\n  SIZE: 3\n", "SIZE"), ("MODEL: [\n", "line"), ("- 1\n", "list"), (None, "no such")],
)
def test_files_that_are_no_config_are_refused(text: str | None, message: str, tmp_path) -> None:
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s)bad.yaml.*{message}"):
        load_config(path)


def test_whole_numbers_do_for_fractions() -> None:
    cfg = load_config(options=["TEST.MASK_NMS.THRESHOLD", "1", "SOLVER.MIN_LR", 0])
    assert cfg.TEST.MASK_NMS.THRESHOLD == 1.0 and isinstance(cfg.SOLVER.MIN_LR, float)


@pytest.mark.parametrize("key", ["SOLVER.MAX_ITER", "TEST.EVAL_PERIOD", "SOLVER.CHECKPOINT_PERIOD"])
def test_iterations_are_refused_where_epochs_count(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} has no effect.*SOLVER.MAX_EPOCHS 0"):
        load_config(options=["SOLVER.MAX_EPOCHS", "3", key, "10"])
    load_config(options=["SOLVER.MAX_EPOCHS", "0", key, "10"])


def test_prediction_wants_settled_normalisation() -> None:
    cfg = load_config(options=["INPUT.CELL.NORMALIZATION", "dataset"])
    with pytest.raises(ConfigError, match="config.yaml"):
        require_fixed_normalization(cfg)
    cfg.INPUT.CELL.NORMALIZATION = "config"
    require_fixed_normalization(cfg)


def test_a_config_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    marker = tmp_path / "ran"
    path.write_text(f'OUTPUT_DIR: !!python/object/apply:os.system ["touch {marker}"]\n')
    with pytest.raises(ConfigError, match="evil.yaml"):
        load_config(path)
    assert not marker.exists()


def test_the_device_falls_back_to_the_cpu(caplog, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert load_config(options=["MODEL.DEVICE", "cuda"]).MODEL.DEVICE == "cpu"
    assert "CUDA is not available" in caplog.text


def test_a_frozen_backbone_without_weights_is_made_to_train(caplog, tmp_path: Path) -> None:
    path = CONFIGS[0].with_name("mask_rcnn_R_50_FPN.yaml")
    assert load_config(path, ["MODEL.DEVICE", "cpu"]).MODEL.RESNETS.NORM == "FrozenBN"
    with caplog.at_level(logging.WARNING, "cellseg_d2.config"):
        cfg = load_config(path, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.RESNETS.NORM == "GN" and cfg.MODEL.BACKBONE.FREEZE_AT == 0
    assert cfg.MODEL.FPN.NORM == cfg.MODEL.ROI_BOX_HEAD.NORM == ""
    (record,) = caplog.records
    assert "NORM GN instead of FrozenBN" in record.message
    assert "FREEZE_AT 0 instead of 2" in record.message
    model = build_model(small(cfg))
    assert all(p.requires_grad for p in model.parameters())
    # What a run writes down is the model that it trained, with weights and without.
    caplog.clear()
    saved = tmp_path / "config.yaml"
    saved.write_text(cfg.dump())
    with caplog.at_level(logging.WARNING, "cellseg_d2.config"):
        for weights in ("", "model_final.pth"):
            again = load_config(saved, ["MODEL.WEIGHTS", weights])
            assert again.MODEL.RESNETS.NORM == "GN" and again.MODEL.BACKBONE.FREEZE_AT == 0
    assert not caplog.records


def test_norms_that_can_train_are_kept(caplog) -> None:
    with caplog.at_level(logging.WARNING, "cellseg_d2.config"):
        cfg = load_config(CONFIGS[0].with_name("mask_rcnn_R_18_FPN_small.yaml"))
        options = ["MODEL.BACKBONE.NAME", "build_convnext_fpn_backbone", "MODEL.DEVICE", "cpu"]
        convnext = load_config(options=options)
    assert cfg.MODEL.RESNETS.NORM == "BN"
    # ConvNeXt has no such norms; its frozen stages would still be random.
    assert convnext.MODEL.RESNETS.NORM == "FrozenBN"
    assert convnext.MODEL.BACKBONE.FREEZE_AT == 0
    assert [r.message for r in caplog.records if "scratch" in r.message] == [
        'MODEL.WEIGHTS is "": training from scratch, with MODEL.BACKBONE.FREEZE_AT 0 instead of 2'
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.CELL.INTENSITY_RANGE", "[]"),
        ("INPUT.CELL.INTENSITY_RANGE", "[0, 4095]"),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "1"),
        ("INPUT.CELL.MAX_PIXELS", "1"),
    ],
)
def test_values_at_the_edge_of_their_range_are_taken(key: str, value: str) -> None:
    load_config(options=[key, value])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BETAS", "[0.9]"),
        ("SOLVER.BETAS", "[2.0, 0.9]"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all"),
        ("SOLVER.BASE_LR", "inf"),
        ("SOLVER.WEIGHT_DECAY", "-1"),
        ("INPUT.CELL.COPY_PASTE.PROB", "3"),
        ("INPUT.CELL.MAX_PIXELS", "0"),
        ("INPUT.CELL.INTENSITY_RANGE", "[5]"),
        ("INPUT.CELL.INTENSITY_RANGE", "[5, 5]"),
        ("INPUT.CELL.INTENSITY_RANGE", "[0, 1, 2]"),
        ("INPUT.CELL.INTENSITY_RANGE", "(0, 1e999)"),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "-0.1"),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "1.5"),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "nan"),
        ("DATASETS.CELL.CLASS_NAMES", "['a', 'b', 'a', 'c']"),
        ("DATASETS.CELL.SPLIT_SEED", "-1"),
        ("TEST.DETECTIONS_PER_IMAGE", "0"),
        ("TEST.PANOPTIC.SCORE_THRESHOLD", "5"),
    ],
)
def test_values_that_would_fail_later_are_refused_at_once(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{key} is")):
        load_config(options=[key, value])
