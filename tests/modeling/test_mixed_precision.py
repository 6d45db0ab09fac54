"""Prediction in mixed precision and in other memory formats against full precision."""

from __future__ import annotations

import copy
import io
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.structures import Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import batched_nms

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.data.dataset_mapper import build_instances
from cellseg_d2.modeling.mixed_precision import use_amp

SMALL = [
    *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    *("TEST.DETECTIONS_PER_IMAGE", "60"),
]
BFLOAT16 = ["SOLVER.AMP.DTYPE", "bfloat16", "TEST.AMP.ENABLED", "True"]


def small_model(repository: Path, *options: str) -> nn.Module:
    cfg = load_config(repository / "configs/mask_rcnn_R_18_FPN_small.yaml", [*SMALL, *options])
    torch.manual_seed(0)
    model = build_model(cfg)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    return model


def sample() -> dict:
    labels = np.zeros((96, 128), np.int32)
    for number, (y, x, side) in enumerate([(5, 5, 18), (30, 60, 25), (60, 10, 12), (50, 90, 30)]):
        labels[y : y + side, x : x + side] = number + 1
    instances = build_instances([labels], [1], {1: np.arange(1, 5)}, (96, 128))
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8, generator=generator)
    image[:, labels > 0] //= 4
    return {"image": image, "instances": instances, "height": 96, "width": 128}


def predict(model: nn.Module) -> Instances:
    with torch.no_grad():
        return model.eval()([sample()])[0]["instances"]


def seen_by_heads(model: nn.Module) -> list[torch.Tensor]:
    """Features of the backbone, noted whenever it runs."""
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_hook(lambda *arguments: seen.append(arguments[2]["p2"]))
    return seen


def test_float16_turns_itself_off_without_cuda_and_says_so(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert use_amp(True, "cpu", "bfloat16") == torch.bfloat16
        assert not caplog.text
        assert use_amp(True, "cpu", "float16") is None
        assert "SOLVER.AMP.ENABLED" in caplog.text
        assert use_amp(True, "cpu", "float16", "TEST.AMP.ENABLED") is None
        assert "TEST.AMP.ENABLED" in caplog.text
    assert use_amp(True, "cuda:0") == torch.float16
    assert use_amp(True, "cuda", "bfloat16") == torch.bfloat16
    assert use_amp(False, "cuda") is None and use_amp(False, "cpu", "bfloat16") is None


def test_an_unknown_dtype_is_refused_even_where_amp_is_off() -> None:
    with pytest.raises(ConfigError, match="SOLVER.AMP.DTYPE is 'fp8'; known: float16, bfloat16"):
        use_amp(False, "cpu", "fp8")


def test_predicts_in_the_precision_of_the_config(repository: Path) -> None:
    for options, dtype in (
        ([], torch.float32),
        (["TEST.AMP.ENABLED", "True"], torch.float32),  # float16, on a CPU
        (BFLOAT16[:2], torch.float32),
        (BFLOAT16, torch.bfloat16),
    ):
        model = small_model(repository, *options)
        seen = seen_by_heads(model)
        predict(model)
        assert [features.dtype for features in seen] == [dtype]


@pytest.mark.parametrize("soft_nms", [[], ["TEST.SOFT_NMS.METHOD", "linear"]])
def test_bfloat16_finds_what_full_precision_finds(repository: Path, soft_nms: list[str]) -> None:
    full = predict(small_model(repository, *soft_nms))
    half = predict(small_model(repository, *BFLOAT16, *soft_nms))
    assert half.scores.dtype == half.pred_boxes.tensor.dtype == torch.float32
    # Eight bits would leave no more than a few scores apart.
    assert len(half.scores.unique()) > 0.9 * len(half)
    overlap = pairwise_iou(full.pred_boxes, half.pred_boxes)
    best = overlap.max(dim=1)
    surest = full.scores > full.scores.median()
    assert (best.values[surest] > 0.9).float().mean() > 0.8
    again = predict(small_model(repository, *BFLOAT16, *soft_nms))
    assert torch.equal(half.scores, again.scores) and half.pred_masks.rles == again.pred_masks.rles


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.train().zero_grad()
    torch.manual_seed(1)
    with EventStorage():
        losses = model([sample(), sample()])
    sum(losses.values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_training_is_the_same_with_mixed_precision_at_test_time(repository: Path) -> None:
    plain, half = gradients(small_model(repository)), gradients(small_model(repository, *BFLOAT16))
    for name, gradient in plain.items():
        assert torch.equal(gradient, half[name]), name


def test_channels_last_gives_the_gradients_of_channels_first(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In double precision: in single, other roundings move what lies at a threshold."""
    # Upstream's boxes are in single precision all the same, and the kernel wants the scores so.
    monkeypatch.setattr(
        proposal_utils, "batched_nms", lambda b, scores, *rest: batched_nms(b, scores.to(b), *rest)
    )
    last = small_model(repository, "MODEL.CHANNELS_LAST", "True").double()
    seen = seen_by_heads(last)
    first = gradients(small_model(repository).double())
    for name, gradient in gradients(last).items():
        scale = first[name].abs().max()
        assert (gradient - first[name]).abs().max() <= 1e-9 * scale, name
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_channels_last_changes_neither_checkpoints_nor_copies(repository: Path) -> None:
    last = small_model(repository, "MODEL.CHANNELS_LAST", "True")
    gradients(last)
    file = io.BytesIO()
    torch.save(last.state_dict(), file)
    file.seek(0)
    plain = small_model(repository)
    plain.load_state_dict(torch.load(file, weights_only=True))
    for (name, one), other in zip(
        last.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other) and one.stride() == other.stride(), name
    copied = copy.deepcopy(last)
    assert predict(copied).pred_masks.rles == predict(last).pred_masks.rles
