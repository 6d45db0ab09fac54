"""Converted weights give what the source's own model gives: features, boxes, scores and masks.

The models are torchvision's, with random weights and random BatchNorm statistics, and ConvNeXt as
its paper and checkpoints have it, written out below.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from torch import nn
from torchvision.models import detection
from torchvision.models.detection._utils import overwrite_eps
from torchvision.ops import FrozenBatchNorm2d

from cellseg_d2 import CellDataError, load_config
from cellseg_d2.checkpoint import CellCheckpointer, load_arrays
from cellseg_d2.checkpoint.convert import convert_file, convert_weights, report

CLASSES = 4


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms random weights and statistics, and layer scales a size that shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        kind = name.rpartition(".")[2]
        if value.ndim <= 1 and kind in ("weight", "running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif kind in ("running_mean", "bias"):
            value.normal_(0, 0.1, generator=generator)
        elif kind in ("layer_scale", "gamma"):
            value.uniform_(0.1, 0.5, generator=generator)
    return model.eval()


def converted(model: nn.Module, folder: Path, **options: object) -> str:
    torch.save(model.state_dict(), folder / "source.pth")
    convert_file(folder / "source.pth", folder / "target.pkl", **options)
    return str(folder / "target.pkl")


def load_backbone(weights: str, *options: object) -> nn.Module:
    cfg = load_config(options=["MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu", *options])
    holder = nn.Module()
    holder.backbone = build_backbone(cfg, ShapeSpec(channels=3))
    CellCheckpointer(holder).load(weights, checkpointables=[])
    return holder.backbone.eval()


def image(*size: int) -> torch.Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.std()))


def resnet_features(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    outputs = {}
    for k in range(1, 5):
        outputs[f"res{k + 1}"] = x = getattr(model, f"layer{k}")(x)
    return outputs


RESNETS: list[tuple[Callable[..., nn.Module], list[object]]] = [
    (
        torchvision.models.resnet18,
        ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64],
    ),
    (torchvision.models.resnet50, []),
    (
        torchvision.models.resnext50_32x4d,
        ["MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 4],
    ),
]
RESNET_OPTIONS = [
    *("MODEL.RESNETS.STRIDE_IN_1X1", False),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
]


@pytest.mark.parametrize(
    ("build", "options"),
    [*RESNETS, (RESNETS[0][0], [*RESNETS[0][1], "MODEL.RESNETS.NORM", "BN"])],
    ids=["R18", "R50", "ResNeXt50", "R18 of BatchNorm"],
)
def test_resnet_features(build, options: list, tmp_path: Path) -> None:
    model = randomize(build())
    options = [*options, *RESNET_OPTIONS]
    options += ["MODEL.BACKBONE.NAME", "build_resnet_backbone"]
    ours = load_backbone(converted(model, tmp_path), *options)
    with torch.no_grad():
        expected, found = resnet_features(model, image(64, 96)), ours(image(64, 96))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value)


@pytest.mark.parametrize(
    "name",
    ["build_resnet_fpn_backbone", "build_cbam_resnet_backbone", "build_cbam_resnet_fpn_backbone"],
)
def test_one_file_fits_backbones_with_attention_and_under_an_fpn(name: str, tmp_path: Path) -> None:
    model = randomize(torchvision.models.resnet18())
    options = [*RESNETS[0][1], *RESNET_OPTIONS, "MODEL.BACKBONE.NAME", name]
    options += ["MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]]
    backbone = load_backbone(converted(model, tmp_path), *options)
    body = backbone.bottom_up if "fpn" in name else backbone
    with torch.no_grad():
        x, expected = body.stem(image(64, 64)), resnet_features(model, image(64, 64))
        for stage, value in expected.items():
            x = getattr(body, stage)(x)
            assert_close(x, value)


def test_one_file_fits_c4_whose_last_stage_is_in_its_head(repository: Path, tmp_path: Path) -> None:
    weights = converted(randomize(torchvision.models.resnet50()), tmp_path)
    path = repository / "configs" / "report4_R_50_C4.yaml"
    cfg = load_config(path, ["MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    CellCheckpointer(model).load(weights, checkpointables=[])
    source = torch.load(tmp_path / "source.pth")
    assert torch.equal(model.roi_heads.res5[1].conv2.weight, source["layer4.1.conv2.weight"])
    assert torch.equal(
        model.backbone.res3[0].shortcut.weight, source["layer2.0.downsample.0.weight"]
    )


def convnext_features(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs = {}
    for index, module in enumerate(model.features):
        x = module(x)
        if index % 2:
            outputs[f"res{index // 2 + 2}"] = x
    return outputs


def assert_convnext(weights: str, features: Callable[[torch.Tensor], dict]) -> None:
    for name in ("build_convnext_backbone", "build_convnext_fpn_backbone"):
        options = ["MODEL.CONVNEXT.SIZE", "tiny", "MODEL.BACKBONE.NAME", name]
        options += ["MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]]
        backbone = load_backbone(weights, *options)
        body = backbone.bottom_up if "fpn" in name else backbone
        with torch.no_grad():
            expected, found = features(image(64, 96)), convnext_features(body, image(64, 96))
        assert found.keys() == expected.keys()
        for stage, value in expected.items():
            assert_close(found[stage], value)


def test_convnext_features(tmp_path: Path) -> None:
    model = randomize(torchvision.models.convnext_tiny())
    assert_convnext(converted(model, tmp_path), lambda x: convnext_features(model, x))


class LayerNormFirst(nn.LayerNorm):
    """LayerNorm over channels of (N, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class OriginalBlock(nn.Module):
    """A ConvNeXt block by the paper's figure 4, with the names of the authors' checkpoints."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class OriginalConvNeXt(nn.Module):
    """ConvNeXt-T, with the names of the authors' checkpoints."""

    def __init__(self, dims: tuple[int, ...] = (96, 192, 384, 768)) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), LayerNormFirst(dims[0], eps=1e-6))
        self.downsample_layers = nn.ModuleList([stem])
        for a, b in zip(dims, dims[1:], strict=False):
            layer = nn.Sequential(LayerNormFirst(a, eps=1e-6), nn.Conv2d(a, b, 2, 2))
            self.downsample_layers.append(layer)
        self.stages = nn.ModuleList(
            nn.Sequential(*(OriginalBlock(dim) for _ in range(depth)))
            for dim, depth in zip(dims, (3, 3, 9, 3), strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], 1000)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = {}
        for k, (layer, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            outputs[f"res{k + 2}"] = x = stage(layer(x))
        return outputs


def test_features_of_the_original_convnext(tmp_path: Path) -> None:
    model = randomize(OriginalConvNeXt())
    torch.save({"model": model.state_dict()}, tmp_path / "source.pth")
    conversion = convert_file(tmp_path / "source.pth", tmp_path / "target.pkl")
    assert conversion.kind == "convnext-original"
    assert sorted(conversion.left) == ["head.bias", "head.weight", "norm.bias", "norm.weight"]
    assert_convnext(str(tmp_path / "target.pkl"), model)


# Detectors


def parity_config(weights: str, *options: object) -> CfgNode:
    """What torchvision's Mask R-CNN does, in Detectron2's keys; its rounded anchors apart."""
    return load_config(
        options=[
            *("MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True),
            *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", *RESNET_OPTIONS),
            *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53]),
            *("MODEL.PIXEL_STD", [58.395, 57.12, 57.375], "INPUT.FORMAT", "RGB"),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
            *("MODEL.ANCHOR_GENERATOR.OFFSET", 0.0),
            *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
            *("MODEL.RPN.PRE_NMS_TOPK_TEST", 1000, "MODEL.RPN.POST_NMS_TOPK_TEST", PROPOSALS),
            *("TEST.DETECTIONS_PER_IMAGE", DETECTIONS),
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
            *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05),
            *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 2),
            *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
            *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"),
            *("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2),
            *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
            *("MODEL.ROI_MASK_HEAD.NUM_CONV", 4, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14),
            *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign"),
            *("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 2),
            *options,
        ]
    )


V2 = [
    *("MODEL.FPN.NORM", "BN", "MODEL.RPN.CONV_DIMS", [-1, -1]),
    *("MODEL.ROI_BOX_HEAD.NUM_CONV", 4, "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
    *("MODEL.ROI_BOX_HEAD.NORM", "BN", "MODEL.ROI_MASK_HEAD.NORM", "BN"),
]


def torchvision_detector(version: int) -> nn.Module:
    """A detector whose classes, scores and boxes differ from place to place."""
    torch.manual_seed(version)
    build = detection.maskrcnn_resnet50_fpn if version == 1 else detection.maskrcnn_resnet50_fpn_v2
    model = build(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        min_size=min(SIZE),
        max_size=max(SIZE),
        rpn_post_nms_top_n_test=PROPOSALS,
        box_detections_per_img=DETECTIONS,
    )
    randomize(model)
    with torch.no_grad():
        # The residual sums of random blocks grow with depth; this brings them back to ImageNet's.
        for module in model.backbone.body.modules():
            if hasattr(module, "bn3"):
                module.bn3.weight.mul_(0.2)
        for name, gain in (("rpn.head.cls_logits", 20), ("rpn.head.bbox_pred", 2)):
            model.get_submodule(name).weight.mul_(gain)
        logits: list[torch.Tensor] = []
        score = model.roi_heads.box_predictor.cls_score
        handle = score.register_forward_hook(lambda module, x, y: logits.append(y))
        torchvision_answer(model, random_pixels())
        handle.remove()
        std, mean = torch.std_mean(logits[0], dim=0)
        score.weight.div_(std[:, None])
        score.bias.sub_(mean).div_(std)
    return model


SIZE = (128, 192)
"""Multiples of 64: for others torchvision takes p6's stride to be less than 64."""

PROPOSALS, DETECTIONS = 50, 40


def random_pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (3, *SIZE), generator=generator).float()


@torch.no_grad()
def torchvision_answer(model: nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Boxes, scores, labels and the masks of the RoIs, before they are pasted."""
    images, _ = model.transform([pixels / 255])
    assert images.tensors.shape[2:] == SIZE
    features = model.backbone(images.tensors)
    proposals, _ = model.rpn(images, features)
    (answer,), _ = model.roi_heads(features, proposals, images.image_sizes)
    return answer


@pytest.mark.parametrize(("version", "options"), [(1, []), (2, V2)], ids=["v1", "v2"])
def test_detector_gives_equal_boxes_scores_and_masks(version, options, tmp_path: Path) -> None:
    theirs = torchvision_detector(version)
    cfg = parity_config(converted(theirs, tmp_path), *options)
    ours = build_model(cfg).eval()
    CellCheckpointer(ours, complete=True).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    for anchors in ours.proposal_generator.anchor_generator.cell_anchors:
        anchors.copy_(anchors.round())
    pixels = random_pixels()
    expected = torchvision_answer(theirs, pixels)
    with torch.no_grad():
        (found,) = ours.inference([{"image": pixels}], do_postprocess=False)
    assert len(found) == len(expected["scores"]) == DETECTIONS
    assert len(found.pred_classes.unique()) == CLASSES
    assert expected["scores"].std() > 0.01 and expected["masks"].std() > 0.01
    torch.testing.assert_close(found.scores, expected["scores"], rtol=0, atol=1e-4)
    assert torch.equal(found.pred_classes, expected["labels"] - 1)
    torch.testing.assert_close(found.pred_boxes.tensor, expected["boxes"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.pred_masks, expected["masks"], rtol=0, atol=1e-4)


def test_old_names_of_the_detectors_layers() -> None:
    # What torchvision's own _load_from_state_dict renames for files of older versions.
    model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    new = convert_weights(model.state_dict())
    renamed = {
        "rpn.head.conv.0.0.": "rpn.head.conv.",
        **{
            f"backbone.fpn.{k}_blocks.{i}.0.": f"backbone.fpn.{k}_blocks.{i}."
            for k in ("inner", "layer")
            for i in range(4)
        },
        **{
            f"roi_heads.mask_head.{i}.0.": f"roi_heads.mask_head.mask_fcn{i + 1}." for i in range(4)
        },
    }
    state = {}
    for name, value in model.state_dict().items():
        prefix = next((p for p in renamed if name.startswith(p)), "")
        state[renamed.get(prefix, "") + name.removeprefix(prefix)] = value
    assert state.keys() != model.state_dict().keys()
    old = convert_weights(state)
    assert old.weights.keys() == new.weights.keys()
    assert all((old.weights[k] == new.weights[k]).all() for k in new.weights)


def test_epsilon_of_the_published_detector(tmp_path: Path) -> None:
    # torchvision sets 0 for COCO_V1; some of its variances are far below Detectron2's 1e-5.
    model = torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d)
    randomize(model)
    model.layer1[0].bn1.running_var[:8] = 1e-9
    model.layer1[0].bn1.weight[:8] *= 1e-4
    overwrite_eps(model, 0.0)
    options = [*RESNETS[0][1], *RESNET_OPTIONS, "MODEL.BACKBONE.NAME", "build_resnet_backbone"]
    plain = load_backbone(converted(model, tmp_path), *options)
    ours = load_backbone(converted(model, tmp_path, epsilon=0.0), *options)
    with torch.no_grad():
        expected = resnet_features(model, image(64, 64))["res3"]
        assert_close(ours(image(64, 64))["res3"], expected)
        assert (plain(image(64, 64))["res3"] - expected).abs().max() > 1e-3


# Reports and refusals


def test_report_names_what_was_renamed_and_left() -> None:
    model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    conversion = convert_weights(model.state_dict())
    text = report(conversion)
    counted = len(conversion.names) + len(conversion.left)
    assert counted == len(model.state_dict()) and f"{counted} arrays" in text
    assert "backbone.body.layer*.*.conv* -> backbone.bottom_up.res*.*.conv* (48)" in text
    assert "backbone.body.layer*.*.bn*.num_batches_tracked (48)" in text
    assert "STRIDE_IN_1X1 False" in text
    assert "rearranged" in text and "  roi_heads.box_predictor.cls_score (2)" in text


def test_data_parallel_prefix_and_checkpoints_are_unwrapped(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    wrapped = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "a.pth")
    conversion = convert_file(tmp_path / "a.pth", tmp_path / "a.pkl")
    assert conversion.weights.keys() == convert_weights(state).weights.keys()
    written = load_arrays(tmp_path / "a.pkl")
    assert written["__author__"] == "torchvision" and written["matching_heuristics"] is True


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda s: {"a.weight": s["conv1.weight"]}, "auto", "no known model.*a.weight"),
        (lambda s: s | {"layer1.0.se.fc1.weight": s["conv1.weight"]}, "auto", "1 param.*se.fc1"),
        (lambda s: s, "convnext", "122 parameters that kind convnext does not know"),
        (lambda s: {"conv1.weight": 3}, "auto", "int under 'conv1.weight'"),
        (lambda s: [], "auto", "found a list"),
    ],
)
def test_other_models_are_refused_and_nothing_is_written(change, kind, message, tmp_path) -> None:
    torch.save(change(torchvision.models.resnet18().state_dict()), tmp_path / "a.pth")
    with pytest.raises(CellDataError, match=f"a.pth: .*{message}"):
        convert_file(tmp_path / "a.pth", tmp_path / "a.pkl", kind)
    assert not list(tmp_path.glob("a.pkl*"))
