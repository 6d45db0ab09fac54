"""Scores weighed by objectness and by the masks' certainty, against upstream's parts and loops."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances

from cellseg_d2 import ConfigError, load_config
from cellseg_d2.modeling.rescoring import Rescoring, mask_certainty, weigh_objectness

from .tiny_models import HEADS, build, predict

OBJECTNESS = ("TEST.RESCORE.OBJECTNESS", "0.3")
MASK = ("TEST.RESCORE.MASK", "2.0")


def upstreams_parts(model: torch.nn.Module) -> tuple[list, torch.Tensor]:
    """What the box predictors are given and answer for the image of ``predict``."""
    calls: list[tuple] = []
    hooks = [
        predictor.register_forward_hook(lambda *call: calls.append(call))
        for predictor in model.modules()
        if isinstance(predictor, FastRCNNOutputLayers)
    ]
    seen: list[Instances] = []
    hooks.append(
        model.proposal_generator.register_forward_hook(
            lambda _module, _arguments, answer: seen.extend(answer[0])
        )
    )
    predict(model)
    for hook in hooks:
        hook.remove()
    (proposals,) = seen
    return calls, proposals


@pytest.mark.parametrize("heads", HEADS)
def test_objectness_enters_before_nms(heads: str) -> None:
    calls, proposals = upstreams_parts(build(heads))
    objectness = 1 / (1 + torch.exp(-proposals.objectness_logits))
    assert objectness.std() > 0
    stages = [torch.softmax(answer[0], 1) ** 0.7 for _, _, answer in calls]
    assert len(stages) == (3 if heads == "CascadeROIHeads" else 1)
    scores = sum(stages) / len(stages) * objectness[:, None] ** 0.3
    predictor, _, answer = calls[-1]
    # The last stage moves the boxes of the one before.
    boxes = proposals.proposal_boxes
    for stage, _, (_, deltas) in calls:
        (moved,) = stage.predict_boxes((None, deltas), [with_boxes(proposals, boxes)])
        boxes = type(boxes)(moved[:, :4].clone())
        boxes.clip(proposals.image_size)
    (expected,), _ = fast_rcnn_inference(
        [moved],
        [scores],
        [proposals.image_size],
        predictor.test_score_thresh,
        predictor.test_nms_thresh,
        predictor.test_topk_per_image,
    )
    found = predict(build(heads, *OBJECTNESS))
    plain = predict(build(heads))
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(
        found.pred_boxes.tensor, expected.pred_boxes.tensor * 1.5, rtol=1e-4, atol=1e-3
    )
    assert len(plain) != len(found) or not torch.equal(plain.scores, found.scores)


def with_boxes(proposals: Instances, boxes) -> Instances:
    return Instances(proposals.image_size, proposal_boxes=boxes)


def test_certainty_by_hand() -> None:
    masks = torch.tensor([[[[0.5, 0.9], [0.1, 0.49]]], [[[1.0, 1.0], [1, 1]]], [[[0.2] * 2] * 2]])
    torch.testing.assert_close(mask_certainty(masks, 0.5), torch.tensor([0.7, 1.0, 0.0]))
    assert mask_certainty(torch.zeros(0, 1, 2, 2), 0.5).shape == (0,)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("method", ["", "linear"])
def test_masks_weigh_in_the_model(heads: str, method: str) -> None:
    options = ["TEST.SOFT_NMS.METHOD", method]
    scores = raw_answer(build(heads, *options, *MASK)).scores.sort().values
    scores = scores[len(scores) // 4 : 3 * len(scores) // 4]
    # In the widest gap, where rounding decides nothing.
    gap = scores.diff().argmax()
    middle = scores[gap : gap + 2].mean().item()
    options += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", repr(middle)]
    raw, weighed = raw_answer(build(heads, *options)), raw_answer(build(heads, *options, *MASK))
    expected = []
    for index, (score, mask) in enumerate(zip(raw.scores.tolist(), raw.pred_masks, strict=True)):
        inside = [p for p in mask.flatten().tolist() if p >= 0.5]
        certainty = sum(inside) / len(inside) if inside else 0.0
        expected.append((-score * certainty**2, index))
    expected = [(score, index) for score, index in sorted(expected) if -score > middle]
    assert 0 < len(expected) < len(raw)
    torch.testing.assert_close(weighed.scores, -torch.tensor([score for score, _ in expected]))
    order = [index for _, index in expected]
    assert order != sorted(order)
    assert torch.equal(weighed.pred_boxes.tensor, raw.pred_boxes.tensor[order])
    assert torch.equal(weighed.pred_masks, raw.pred_masks[order])


def raw_answer(model: torch.nn.Module) -> Instances:
    """The model's answer with probabilities as masks, some surer than others."""
    # Res5's features are 30 times the others'.
    std = 0.1 if type(model.roi_heads).__name__ == "Res5ROIHeads" else 3.0
    for name, parameter in model.named_parameters():
        if "mask_head.predictor" in name:
            torch.nn.init.normal_(parameter, std=std, generator=torch.Generator().manual_seed(1))
    image = torch.randint(0, 255, (3, 64, 80), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        (raw,) = model.inference([{"image": image}], do_postprocess=False)
    return raw


def test_a_copy_of_a_model_has_a_weighting_of_its_own() -> None:
    model = build("CascadeROIHeads", *OBJECTNESS)
    copied = copy.deepcopy(model)
    before = predict(model)
    # With another image's proposals the copy leaves the model's alone.
    with torch.no_grad():
        copied([{"image": torch.zeros(3, 64, 80), "height": 64, "width": 80}])
    held = [predictor.predict_probs.func.__self__ for predictor in model.roi_heads.box_predictor]
    others = [p.predict_probs.func.__self__ for p in copied.roi_heads.box_predictor]
    assert len({*map(id, held)}) == len({*map(id, others)}) == 1 and held[0] is not others[0]
    assert torch.equal(predict(copied).scores, before.scores)
    assert torch.equal(predict(model).scores, before.scores)


def test_boxes_that_are_given_keep_their_scores() -> None:
    model = build("StandardROIHeads", *OBJECTNESS, *MASK)
    given = Instances((64, 80), pred_boxes=predict(model).pred_boxes[:3])
    given.pred_classes, given.scores = torch.zeros(3, dtype=torch.int64), torch.ones(3)
    with torch.no_grad():
        image = {"image": torch.zeros(3, 64, 80)}
        (answer,) = model.inference([image], [given], do_postprocess=False)
    assert torch.equal(answer.scores, torch.ones(3))


def test_a_model_without_masks_is_left_alone() -> None:
    without = ("MODEL.MASK_ON", "False")
    plain = predict(build("StandardROIHeads", *without))
    assert torch.equal(predict(build("StandardROIHeads", *without, *MASK)).scores, plain.scores)


def test_off_by_default() -> None:
    rescoring = Rescoring.from_config(load_config())
    assert (rescoring.objectness, rescoring.mask) == (0, 0)
    for heads in HEADS:
        model = build(heads)
        assert not model.roi_heads._forward_pre_hooks
        raw = raw_answer(model)
        assert model.rescoring.weigh_masks(raw, 0.5) is raw


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("OBJECTNESS", "1.0", r"OBJECTNESS is 1\.0; it lies in \[0, 1\)"),
        ("OBJECTNESS", "-0.1", r"OBJECTNESS is -0\.1"),
        ("MASK", "-1.0", r"MASK is -1\.0; it is 0 or more"),
    ],
)
def test_exponents_out_of_range_are_refused(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(load_config(options=[f"TEST.RESCORE.{key}", value]))


def test_heads_without_box_predictors_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no effect on Linear.*set it to 0"):
        weigh_objectness(torch.nn.Linear(1, 1), 0.5)
