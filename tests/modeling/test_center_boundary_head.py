"""The auxiliary heads: losses against sums written out, and their place in the model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.data.dataset_mapper import build_instances
from cellseg_d2.data.target_generator import CenterBoundaryTargets
from cellseg_d2.modeling import CellRCNN, CenterBoundaryHead
from cellseg_d2.modeling.center_boundary_head import masked_bce

SMALL = Path(__file__).resolve().parents[2] / "configs" / "mask_rcnn_R_18_FPN_small.yaml"


def head(center_weight: float = 0.5, boundary_weight: float = 0.5) -> CenterBoundaryHead:
    torch.manual_seed(0)
    return CenterBoundaryHead(
        in_feature="p2",
        in_channels=6,
        conv_dim=5,
        center_weight=center_weight,
        boundary_weight=boundary_weight,
    )


def maps(*sizes: tuple[int, int], seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    centers = [torch.rand(size, generator=generator) for size in sizes]
    boundaries = [(torch.rand(size, generator=generator) < 0.3).byte() for size in sizes]
    return centers, boundaries


def features(batch: int, height: int, width: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {"p2": torch.randn(batch, 6, height, width), "p3": torch.randn(batch, 6, 2, 2)}


def test_losses_are_the_weighted_cross_entropies_of_the_resized_maps() -> None:
    model, inputs = head(0.25, 3.0), features(1, 8, 12)
    centers, boundaries = maps((32, 48))
    losses = model(inputs, centers, boundaries, (32, 48))
    # At stride 4 bilinear interpolation reads an axis' two middle pixels, nearest the first.
    center = (centers[0][1::4] + centers[0][2::4]) / 2
    center = (center[:, 1::4] + center[:, 2::4]) / 2
    boundary = boundaries[0][::4, ::4].float()
    center_logits, boundary_logits = model.predict(inputs)
    for name, logits, target, weight in (
        ("loss_center", center_logits, center, 0.25),
        ("loss_boundary", boundary_logits, boundary, 3.0),
    ):
        p = torch.sigmoid(logits[0, 0])
        expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
        torch.testing.assert_close(losses[name], weight * expected)
    assert set(losses) == {"loss_center", "loss_boundary"}


def test_padding_does_not_count() -> None:
    model = head()
    inputs = features(2, 16, 16)
    centers, boundaries = maps((64, 64), (32, 20))
    together = model(inputs, centers, boundaries, (64, 64))
    apart = [
        model({"p2": inputs["p2"][i : i + 1]}, centers[i : i + 1], boundaries[i : i + 1], (64, 64))
        for i in range(2)
    ]
    # Of the second image 8 x 5 pixels of the feature show something.
    for name, loss in together.items():
        expected = (256 * apart[0][name] + 40 * apart[1][name]) / 296
        torch.testing.assert_close(loss, expected)
    logits = model.predict(inputs)[1][1, 0, :8, :5]
    alone = 0.5 * F.binary_cross_entropy_with_logits(logits, boundaries[1][::4, ::4].float())
    torch.testing.assert_close(apart[1]["loss_boundary"], alone)


def test_masked_bce_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 0.0, 100.0]]]])
    targets = torch.tensor([[[[1.0, 0.25, 0.0]]]])
    valid = torch.tensor([[[[1.0, 1.0, 0.0]]]])
    assert masked_bce(logits, targets, valid).item() == pytest.approx(math.log(2))
    assert masked_bce(logits, targets, torch.ones_like(valid)).item() == pytest.approx(
        (2 * math.log(2) + 100) / 3
    )


@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_saturated_logits_give_finite_losses_and_gradients(magnitude: float) -> None:
    logits = torch.full((1, 1, 4, 4), magnitude, requires_grad=True)
    loss = masked_bce(logits, torch.full((1, 1, 4, 4), 0.5), torch.ones(1, 1, 4, 4))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all() and logits.grad.any()


def test_losses_are_float32_under_autocast() -> None:
    centers, boundaries = maps((64, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = head()(features(1, 16, 16), centers, boundaries, (64, 64))
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())


def test_the_heads_learn_a_pattern() -> None:
    model, inputs = head(), features(1, 8, 8)
    centers = [torch.zeros(32, 32)]
    boundaries = [torch.zeros(32, 32, dtype=torch.uint8)]
    centers[0][8:16, 8:16] = 1
    boundaries[0][16:, 16:] = 1
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    history = []
    for _ in range(60):
        losses = model(inputs, centers, boundaries, (32, 32))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    assert history[0]["loss_center"] == pytest.approx(0.5 * math.log(2), abs=0.02)
    assert all(history[-1][name] < 0.2 * history[0][name] for name in history[0])


def tiny_config(enabled: bool = True) -> CfgNode:
    cfg = load_config(SMALL)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.MODEL.CENTER_BOUNDARY_HEAD.ENABLED = enabled
    cfg.MODEL.CENTER_BOUNDARY_HEAD.CONV_DIM = 8
    return cfg


def sample(height: int, width: int) -> dict:
    labels = np.zeros((height, width), np.int32)
    labels[5:20, 5:25], labels[25:40, 20:45] = 1, 9
    instances = build_instances([labels], [0], {0: np.array([1, 9])}, (height, width))
    generator = torch.Generator().manual_seed(height)
    image = torch.randint(0, 255, (3, height, width), dtype=torch.uint8, generator=generator)
    targets = CenterBoundaryTargets()(instances.gt_masks)
    return {"image": image, "instances": instances, "height": height, "width": width} | targets


def train_losses(model: CellRCNN, batch: list[dict]) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    with EventStorage():
        return model(batch)


def test_the_model_adds_the_losses_and_their_gradients_reach_the_backbone() -> None:
    torch.manual_seed(0)
    model = build_model(tiny_config())
    losses = train_losses(model, [sample(64, 80), sample(50, 60)])
    assert {"loss_center", "loss_boundary", "loss_mask", "loss_rpn_cls"} <= set(losses)
    (losses["loss_center"] + losses["loss_boundary"]).backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name for name in touched if name.startswith("center_boundary_head.")} == {
        f"center_boundary_head.{kind}.{layer}.{parameter}"
        for kind in ("center", "boundary")
        for layer in (0, 2)
        for parameter in ("weight", "bias")
    }
    assert "backbone.bottom_up.stem.conv1.weight" in touched
    assert "backbone.bottom_up.res5.1.conv2.weight" in touched
    assert not any(name.startswith(("proposal_generator", "roi_heads")) for name in touched)


def test_it_is_off_by_default_and_leaves_the_other_losses_as_they_are() -> None:
    assert load_config().MODEL.CENTER_BOUNDARY_HEAD.ENABLED is False
    torch.manual_seed(0)
    with_head = build_model(tiny_config())
    plain = build_model(tiny_config(enabled=False))
    assert not any("center_boundary" in name for name, _ in plain.named_parameters())
    missing, unexpected = plain.load_state_dict(with_head.state_dict(), strict=False)
    assert not missing and len(unexpected) == 8
    batch = [sample(64, 80), sample(50, 60)]
    expected, found = train_losses(plain, batch), train_losses(with_head, batch)
    assert set(found) - set(expected) == {"loss_center", "loss_boundary"}
    for name, loss in expected.items():
        assert torch.equal(found[name], loss)


def test_the_backbone_runs_once_and_the_heads_not_at_test_time(monkeypatch) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_config())
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append("backbone"))
    model.center_boundary_head.register_forward_hook(lambda *_: calls.append("head"))
    for _ in range(2):
        train_losses(model, [sample(64, 80)])
    assert calls == ["backbone", "head"] * 2
    calls.clear()
    with torch.no_grad():
        (answer,) = model.eval()([{"image": sample(64, 80)["image"], "height": 64, "width": 80}])
    assert calls == ["backbone"] and len(answer["instances"]) > 0


def test_a_failed_step_leaves_no_hook_behind() -> None:
    model = build_model(tiny_config())
    with EventStorage(), pytest.raises(AttributeError):
        model([sample(64, 80) | {"instances": None}])
    assert not model.backbone._forward_hooks


def test_samples_without_maps_are_refused() -> None:
    batch = [sample(64, 80), sample(64, 80)]
    del batch[1]["boundary_map"]
    with pytest.raises(ValueError, match="no center_map and boundary_map"):
        train_losses(build_model(tiny_config()), batch)


def test_a_feature_that_the_backbone_lacks_is_refused() -> None:
    cfg = tiny_config()
    cfg.MODEL.CENTER_BOUNDARY_HEAD.IN_FEATURE = "res2"
    with pytest.raises(ConfigError, match="IN_FEATURE is 'res2'; build_resnet_fpn.* p2, p3"):
        build_model(cfg)


def test_the_heads_have_the_stated_layers() -> None:
    model = CenterBoundaryHead(load_config(), {"p2": ShapeSpec(channels=256, stride=4)})
    one = 256 * 256 * 9 + 256 + 256 + 1
    assert sum(p.numel() for p in model.parameters()) == 2 * one
    assert (model.center_weight, model.boundary_weight) == (0.5, 0.5)
