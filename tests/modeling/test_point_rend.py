"""PointRend on label maps against upstream's on bitmaps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.projects.point_rend import PointRendMaskHead, add_pointrend_config
from detectron2.projects.point_rend.point_features import (
    sample_point_labels as sample_from_bitmaps,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from cellseg_d2 import ConfigError, add_cellseg_config, load_config
from cellseg_d2.data.dataset_mapper import build_instances
from cellseg_d2.modeling import CellPointRendMaskHead, point_inference
from cellseg_d2.modeling.losses import dice
from cellseg_d2.modeling.point_rend import sample_point_labels
from cellseg_d2.structures import LabelMasks, RLEMasks

SHAPES = {"p2": ShapeSpec(channels=8, stride=4)}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
        ],
    ),
]


def config(repository, *options: str) -> CfgNode:
    head = ["MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.ROI_MASK_HEAD.FC_DIM", "16"]
    head += ["MODEL.POINT_HEAD.FC_DIM", "12", "MODEL.FPN.OUT_CHANNELS", "8"]
    head += ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    return load_config(repository / "configs" / "pointrend_R_50_FPN.yaml", head + list(options))


def noise(height: int, width: int, count: int, seed: int = 0) -> LabelMasks:
    """Ids strewn over two label maps: every pixel is an edge."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, 4, (2, height, width), generator=generator, dtype=torch.int32)
    layers = torch.randint(0, 2, (count,), generator=generator)
    return LabelMasks(maps, layers, torch.randint(1, 4, (count,), generator=generator))


def upstream_labels(masks: LabelMasks, points: torch.Tensor) -> torch.Tensor:
    bitmaps = Instances(masks.image_size, gt_masks=masks.to_bit_masks())
    return sample_from_bitmaps([bitmaps], points)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(61, 90), (517, 1003), (1, 7), (64, 64)])
def test_labels_of_points_are_upstreams(size: tuple[int, int], device: str) -> None:
    """To the bit on processors that fuse multiplication and addition, as all of these do."""
    masks = noise(*size, 5).to(device)
    generator = torch.Generator().manual_seed(1)
    spread = torch.tensor([size[1] + 6.0, size[0] + 6.0])
    points = (torch.rand(5, 4000, 2, generator=generator) * spread - 3).to(device)
    labels = sample_point_labels(masks, points)
    assert labels.dtype == torch.float32
    assert torch.equal(labels, upstream_labels(masks, points))


@pytest.mark.parametrize("device", DEVICES)
def test_labels_at_pixel_centers_and_corners(device: str) -> None:
    masks = noise(9, 12, 4, seed=2).to(device)
    y, x = torch.meshgrid(torch.arange(0, 9.5, 0.5), torch.arange(0, 12.5, 0.5), indexing="ij")
    points = torch.stack([x, y], dim=-1).reshape(1, -1, 2).repeat(4, 1, 1).to(device)
    labels = sample_point_labels(masks, points)
    assert torch.equal(labels, upstream_labels(masks, points))
    centers = labels.reshape(4, 19, 25)[:, 1::2, 1::2]
    assert torch.allclose(centers, masks.to_bit_masks().tensor.float(), atol=1e-5)


def test_a_label_by_hand() -> None:
    # Pixel (1, 2) alone; a point a quarter of a pixel right of and below its center.
    maps = torch.zeros(1, 4, 4, dtype=torch.uint8)
    maps[0, 1, 2] = 7
    masks = LabelMasks(maps, torch.zeros(2, dtype=torch.int64), torch.tensor([7, 8]))
    points = torch.tensor([[[2.75, 1.75], [2.5, 1.5], [3.5, 1.5], [-9.0, 2.0]]]).repeat(2, 1, 1)
    labels = sample_point_labels(masks, points)
    assert labels[0].tolist() == pytest.approx([9 / 16, 1, 0, 0])
    assert labels[1].tolist() == [0, 0, 0, 0]


def test_no_instances_have_no_labels() -> None:
    masks = noise(8, 8, 0)
    assert sample_point_labels(masks, torch.zeros(0, 5, 2)).shape == (0, 5)


def proposals(count: int, seed: int = 0) -> Instances:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 50, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 25, (count, 2))], axis=1)
    return Instances(
        (64, 80),
        proposal_boxes=Boxes(torch.from_numpy(boxes).float()),
        gt_classes=torch.from_numpy(rng.integers(0, 4, count)),
        gt_masks=noise(64, 80, count, seed),
    )


def with_bitmaps(instances: Instances) -> Instances:
    fields = instances.get_fields() | {"gt_masks": instances.gt_masks.to_bit_masks()}
    return Instances(instances.image_size, **fields)


def heads(cfg: CfgNode) -> tuple[CellPointRendMaskHead, PointRendMaskHead]:
    torch.manual_seed(0)
    ours, theirs = build_mask_head(cfg, SHAPES), PointRendMaskHead(cfg, SHAPES)
    for parameter in ours.parameters():
        # Fresh predictors answer next to nothing.
        torch.nn.init.normal_(parameter, std=0.3)
    assert isinstance(ours, CellPointRendMaskHead)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def features(count: int = 1) -> dict[str, torch.Tensor]:
    return {"p2": torch.randn(count, 8, 16, 20, generator=torch.Generator().manual_seed(4))}


def test_training_equals_upstreams_on_bitmaps(repository) -> None:
    ours, theirs = heads(config(repository))
    batch = [proposals(6), proposals(3, seed=1)]
    results = []
    for head, instances in ((ours, batch), (theirs, [with_bitmaps(item) for item in batch])):
        torch.manual_seed(9)
        with EventStorage() as storage:
            losses = head(features(2), instances)
            results.append((losses, storage.latest()))
        sum(losses.values()).backward()
    (ours_losses, ours_log), (their_losses, their_log) = results
    assert set(ours_losses) == set(their_losses) == {"loss_mask", "loss_mask_point"}
    for name, value in ours_losses.items():
        assert torch.equal(value, their_losses[name])
    assert ours_log == their_log and "point/accuracy" in ours_log
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name


def test_the_chosen_loss_is_that_of_the_points_too(repository) -> None:
    cfg = config(repository, "MODEL.ROI_MASK_HEAD.LOSS", "dice")
    ours, theirs = heads(cfg)
    batch = [proposals(4)]
    torch.manual_seed(9)
    with EventStorage():
        losses = ours(features(), batch)
    torch.manual_seed(9)
    boxes = [item.proposal_boxes for item in batch]
    coarse = theirs.coarse_head(theirs._roi_pooler(features(), boxes))
    points, labels = theirs.train()._sample_train_points(coarse, [with_bitmaps(batch[0])])
    logits = theirs._get_point_logits(
        theirs._point_pooler(features(), boxes, points), points, coarse
    )
    chosen = torch.stack([logits[i, c] for i, c in enumerate(batch[0].gt_classes)])
    assert torch.allclose(losses["loss_mask_point"], dice(chosen, labels))
    targets = with_bitmaps(batch[0]).gt_masks.crop_and_resize(boxes[0].tensor, 7)
    chosen = torch.stack([coarse[i, c] for i, c in enumerate(batch[0].gt_classes)])
    assert torch.allclose(losses["loss_mask"], dice(chosen, targets))


def test_one_mask_for_all_classes_is_upstreams_of_one_class(repository) -> None:
    """Upstream's head never reads ``CLS_AGNOSTIC_MASK``."""
    cfg = config(repository, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True")
    ours = build_mask_head(cfg, SHAPES)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 4
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.POINT_HEAD.NUM_CLASSES = 1
    theirs = PointRendMaskHead(cfg, SHAPES)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.load_state_dict(ours.state_dict())
    batch = [proposals(6), proposals(3, seed=1)]
    of_one_class = [with_bitmaps(item) for item in batch]
    for item in of_one_class:
        item.gt_classes = torch.zeros_like(item.gt_classes)
    results = []
    for head, instances in ((ours, batch), (theirs, of_one_class)):
        torch.manual_seed(9)
        with EventStorage():
            results.append(head(features(2), instances))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name])

    masks = []
    for head in (ours.eval(), theirs.eval()):
        found = Instances((64, 80), pred_boxes=batch[0].proposal_boxes)
        found.pred_classes = batch[0].gt_classes if head is ours else of_one_class[0].gt_classes
        with torch.no_grad():
            masks.append(head(features(), [found])[0].pred_masks)
    assert masks[0].shape == (6, 1, 56, 56)
    assert torch.allclose(masks[0], masks[1], atol=1e-6)


@pytest.mark.parametrize("batch", [[6, 0], [0, 5], [0, 0]])
def test_images_without_proposals(repository, batch: list[int]) -> None:
    """Upstream's raises an error where no image of the batch has any."""
    ours, _ = heads(config(repository))
    instances = [proposals(count) for count in batch]
    for item in instances:
        if not len(item):
            item.remove("gt_masks")
    with EventStorage():
        losses = ours(features(2), instances)
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(parameter.grad is not None for parameter in ours.parameters())
    assert (sum(losses.values()) > 0) == (sum(batch) > 0)


def test_the_coarse_head_alone(repository) -> None:
    ours, _ = heads(config(repository, "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "False"))
    with EventStorage():
        assert set(ours(features(), [proposals(3)])) == {"loss_mask"}


def detections(*counts: int) -> list[Instances]:
    found = []
    for seed, count in enumerate(counts):
        there = proposals(count, seed)
        found.append(
            Instances((64, 80), pred_boxes=there.proposal_boxes, pred_classes=there.gt_classes)
        )
    return found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_inference_on_cuda_is_that_on_the_cpu(repository) -> None:
    ours, _ = heads(config(repository))
    (expected,) = ours.eval()(features(), detections(20))
    maps = {name: feature.cuda() for name, feature in features().items()}
    (found,) = ours.cuda()(maps, [item.to("cuda") for item in detections(20)])
    # TF32 rounds to 10 bits; which points are refined can then differ, too.
    difference = (found.pred_masks.cpu() - expected.pred_masks).abs()
    assert (difference > 0.02).float().mean() < 0.01


def assert_same_masks(
    ours: CellPointRendMaskHead, theirs: PointRendMaskHead, counts: tuple[int, ...], side: int
) -> None:
    maps = features(len(counts))
    with torch.no_grad():
        expected = theirs.eval()(maps, detections(*counts))
    # Gradients are on, as they are for a caller who did not think of them.
    answer = ours.eval()(maps, detections(*counts))
    for ours_one, theirs_one, count in zip(answer, expected, counts, strict=True):
        assert ours_one.pred_masks.shape == (count, 1, side, side)
        if count:
            assert torch.allclose(ours_one.pred_masks, theirs_one.pred_masks, atol=1e-6)
            # Not a comparison of all zeros or all ones.
            assert 0.05 < (ours_one.pred_masks > 0.5).float().mean() < 0.95


@pytest.mark.parametrize("counts", [(7, 4), (0, 5), (1, 3)])
def test_inference_equals_upstreams_however_it_is_cut(
    repository, monkeypatch, counts: tuple[int, int]
) -> None:
    # Three RoIs of 12 + 1 + 4 rows and 28x28 points at a time.
    monkeypatch.setitem(point_inference.BYTES_AT_A_TIME, "cpu", 3 * 4 * 17 * 784)
    ours, theirs = heads(config(repository))
    assert_same_masks(ours, theirs, counts, 56)


@pytest.mark.parametrize(
    ("option", "value", "side"),
    [
        ("POINT_HEAD.SUBDIVISION_STEPS", 2, 28),
        ("POINT_HEAD.SUBDIVISION_STEPS", 5, 224),
        ("POINT_HEAD.SUBDIVISION_NUM_POINTS", 60, 56),
        ("POINT_HEAD.COARSE_PRED_EACH_LAYER", False, 56),
        ("POINT_HEAD.CLS_AGNOSTIC_MASK", True, 56),
        ("POINT_HEAD.NUM_FC", 1, 56),
        ("POINT_HEAD.NUM_FC", 2, 56),
        ("ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION", 5, 40),
    ],
)
def test_inference_equals_upstreams_with_other_options(
    repository, option: str, value: object, side: int
) -> None:
    ours, theirs = heads(config(repository, f"MODEL.{option}", str(value)))
    assert_same_masks(ours, theirs, (9,), side)


def test_inference_from_two_feature_maps_is_upstreams(repository) -> None:
    shapes = SHAPES | {"p3": ShapeSpec(channels=6, stride=8)}
    cfg = config(repository, "MODEL.POINT_HEAD.IN_FEATURES", "['p3', 'p2']")
    torch.manual_seed(0)
    ours, theirs = build_mask_head(cfg, shapes).eval(), PointRendMaskHead(cfg, shapes).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.load_state_dict(ours.state_dict())
    maps = features() | {"p3": torch.randn(1, 6, 8, 10)}
    with torch.no_grad():
        (found,), (expected,) = ours(maps, detections(8)), theirs(maps, detections(8))
    assert torch.allclose(found.pred_masks, expected.pred_masks, atol=1e-6)


def test_images_without_detections_get_no_masks(repository) -> None:
    """Of the same size as those of others; upstream's are those before the first step."""
    ours, _ = heads(config(repository))
    answer = ours.eval()(features(2), detections(0, 0))
    assert [item.pred_masks.shape for item in answer] == [(0, 1, 56, 56)] * 2


def test_mixed_precision_is_close_to_full(repository) -> None:
    ours, _ = heads(config(repository))
    ours.eval()
    (full,) = ours(features(), detections(12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (mixed,) = ours(features(), detections(12))
    same = (full.pred_masks > 0.5) == (mixed.pred_masks > 0.5)
    assert same.float().mean() > 0.98
    assert not torch.equal(full.pred_masks, mixed.pred_masks)


def test_the_coarse_masks_alone_are_predicted(repository) -> None:
    """Upstream's raises an AttributeError."""
    ours, _ = heads(config(repository, "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "False"))
    maps, (found,) = features(), detections(5)
    ours.eval()(maps, [found])
    logits = ours.coarse_head(ours._roi_pooler(maps, [found.pred_boxes]))
    expected = logits[torch.arange(5), found.pred_classes].sigmoid()
    assert torch.allclose(found.pred_masks[:, 0], expected)


def test_another_point_head_is_refused(repository) -> None:
    cfg = config(repository, "MODEL.POINT_HEAD.NAME", "ImplicitPointHead")
    with pytest.raises(ConfigError, match=r"POINT_HEAD.NAME is 'ImplicitPointHead'; .* alone"):
        build_mask_head(cfg, SHAPES)


def test_the_model_trains_and_predicts_rles(repository) -> None:
    torch.manual_seed(0)
    options = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    options += ["MODEL.RPN.POST_NMS_TOPK_TEST", "60", "TEST.DETECTIONS_PER_IMAGE", "60"]
    options += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.SOFT_NMS.METHOD", "linear"]
    model = build_model(config(repository, *options))
    labels = np.zeros((64, 80), np.int32)
    labels[5:20, 5:25], labels[30:50, 40:70] = 1, 9
    item = {
        "image": torch.randint(0, 255, (3, 64, 80), dtype=torch.uint8),
        "instances": build_instances([labels], [0], {0: np.array([1, 9])}, (64, 80)),
    }
    with EventStorage():
        losses = model([item])
    assert torch.isfinite(sum(losses.values())) and "loss_mask_point" in losses
    with torch.no_grad():
        (answer,) = model.eval()([{"image": item["image"], "height": 128, "width": 160}])
    masks = answer["instances"].pred_masks
    assert isinstance(masks, RLEMasks) and masks.image_size == (128, 160) and len(masks) > 0
    with torch.no_grad():
        # What GeneralizedRCNN makes of the same raw answer.
        (raw,) = model.inference([{"image": item["image"]}], do_postprocess=False)
    assert raw.pred_masks.shape[1:] == (1, 56, 56)


def test_the_config_keys_do_not_touch_ours(repository) -> None:
    cfg = get_cfg()
    add_cellseg_config(cfg)
    before = cfg.dump()
    add_pointrend_config(cfg)
    assert cfg.dump() == before


def test_the_number_of_classes_is_said_once() -> None:
    options = ["MODEL.ROI_HEADS.NUM_CLASSES", "2", "DATASETS.CELL.CLASS_NAMES", "['a', 'b']"]
    assert load_config(options=options).MODEL.POINT_HEAD.NUM_CLASSES == 2
