"""The predictor: batches, views, ensembles and their order, with a tiny model of random weights."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from detectron2.structures import Instances
from PIL import Image

from cellseg_d2 import CellDataError, ConfigError
from cellseg_d2.data.tiff_window import ArrayWindows
from cellseg_d2.inference import CellPredictor, finder
from cellseg_d2.inference.dihedral import SYMMETRIES
from cellseg_d2.inference.finder import ModelFinder
from cellseg_d2.inference.fusion import merge_answers
from cellseg_d2.inference.tiling import predict_tiled

from .models import save_weights, tiny_config

SIZES = [(64, 80), (64, 64), (64, 80), (48, 40), (64, 80)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("weights")
    return [str(save_weights(folder / f"{seed}.pth", seed)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (*size, 3), np.uint8) for size in SIZES]


def same(a: Instances, b: Instances) -> None:
    """Equal but for the rounding of a convolution, which depends on the batch's size."""
    assert a.image_size == b.image_size and len(a) == len(b) > 3
    assert torch.allclose(a.scores, b.scores, atol=1e-5)
    assert torch.allclose(a.pred_boxes.tensor, b.pred_boxes.tensor, atol=1e-2)
    assert torch.equal(a.pred_classes, b.pred_classes)
    assert all(isinstance(rle["counts"], bytes) for rle in a.pred_masks.rles)


def equal(a: Instances, b: Instances) -> None:
    assert a.image_size == b.image_size and len(a) == len(b) > 3
    assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_classes, b.pred_classes)
    assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
    assert a.pred_masks.rles == b.pred_masks.rles


def test_it_answers_as_the_model_does(weights: list[str], images: list[np.ndarray]) -> None:
    cfg = tiny_config("MODEL.WEIGHTS", weights[0])
    predictor = CellPredictor(cfg)
    model = ModelFinder(cfg, weights[0]).model
    tensor = torch.from_numpy(images[0][:, :, ::-1].transpose(2, 0, 1).copy())  # BGR
    with torch.no_grad():
        expected = model([{"image": tensor, "height": 64, "width": 80}])[0]["instances"]
    equal(predictor(images[0])["instances"], expected)
    equal(next(predictor.stream(images[0])), expected)


@pytest.mark.parametrize("pixels", [1, 64 * 80 * 2, 2**21])
def test_batches_answer_in_order_and_alike(
    weights: list[str], images: list[np.ndarray], pixels: int, monkeypatch
) -> None:
    predictor = CellPredictor(tiny_config("MODEL.WEIGHTS", weights[0]))
    expected = [predictor(image)["instances"] for image in images]
    monkeypatch.setattr(finder, "BATCH_PIXELS", pixels)
    for answers in (predictor.find_batch(images), list(predictor.predict_all(images))):
        for found, alone in zip(answers, expected, strict=True):
            same(found, alone)
    assert predictor.find_batch([]) == [] and list(predictor.predict_all([])) == []


def test_images_of_one_size_run_together(weights, images, monkeypatch) -> None:
    predictor = CellPredictor(tiny_config("MODEL.WEIGHTS", weights[0]))
    seen = []
    model = predictor.models[0].model
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda items: seen.append(len(items)) or forward(items))
    predictor.find_batch(images)
    assert seen == [3, 1, 1]
    monkeypatch.setattr(finder, "BATCH_PIXELS", 64 * 80 * 2)
    seen.clear()
    predictor.find_batch(images)
    assert seen == [2, 1, 1, 1]


def test_files_and_arrays_are_taken_as_needed(weights, images, tmp_path: Path, monkeypatch) -> None:
    cfg = tiny_config("MODEL.WEIGHTS", weights[0], "INPUT.CELL.CHANNEL_ORDER", "BGR")
    predictor = CellPredictor(cfg)
    path = tmp_path / "swapped.tif"
    tifffile.imwrite(path, images[0][:, :, ::-1])
    equal(next(predictor.stream(path)), predictor(images[0])["instances"])
    monkeypatch.setattr("cellseg_d2.inference.predictor.BATCH_PIXELS", 1)
    taken = []

    def items():
        for item in (path, images[1], str(path)):
            taken.append(item)
            yield item

    answers = predictor.predict_all(items())
    same(next(answers), predictor(images[0])["instances"])
    assert len(taken) == 2
    assert len(list(answers)) == 2 and len(taken) == 3
    with pytest.raises(CellDataError, match="none.tif"):
        list(predictor.predict_all([tmp_path / "none.tif"]))


def test_scale_is_of_the_input_and_not_of_the_answer(weights, images) -> None:
    cfg = tiny_config("MODEL.WEIGHTS", weights[0])
    find = ModelFinder(cfg, weights[0])
    (answer,) = find([images[0]], scale=1.5)
    large = np.array(Image.fromarray(images[0]).resize((120, 96), Image.BILINEAR))
    tensor = torch.from_numpy(large[:, :, ::-1].transpose(2, 0, 1).copy())
    with torch.no_grad():
        expected = find.model([{"image": tensor, "height": 64, "width": 80}])[0]["instances"]
    equal(answer, expected)
    # A size that the config asks for comes first.
    resized = tiny_config("MODEL.WEIGHTS", weights[0], "INPUT.MIN_SIZE_TEST", "96")
    (via_config,) = ModelFinder(resized, weights[0])([images[0]])
    equal(via_config, expected)
    (both,) = ModelFinder(resized, weights[0])([images[0]], scale=2 / 3)
    equal(both, CellPredictor(cfg)(images[0])["instances"])


def test_views_are_merged(weights, images) -> None:
    options = ["MODEL.WEIGHTS", weights[0], "TEST.TTA.ENABLED", "True"]
    options += [
        "TEST.TTA.TRANSFORMS",
        "['none', 'rot90', 'hflip']",
        "TEST.TTA.SCALES",
        "[1.0, 1.5]",
    ]
    cfg = tiny_config(*options)
    find = ModelFinder(cfg, weights[0])
    image, answers = images[0], []
    for scale in (1.0, 1.5):
        for name in ("none", "rot90", "hflip"):
            (answer,) = find([SYMMETRIES[name].apply(image)], scale=scale)
            answers.append(SYMMETRIES[name].undo(answer))
    expected = merge_answers(answers, method="fusion", threshold=0.5, max_detections=100)
    equal(CellPredictor(cfg)(image)["instances"], expected)


def test_one_view_that_is_turned_is_not_merged(weights, images) -> None:
    options = ["MODEL.WEIGHTS", weights[0], "TEST.TTA.ENABLED", "True"]
    cfg = tiny_config(*options, "TEST.TTA.TRANSFORMS", "['transpose']")
    turned = CellPredictor(tiny_config("MODEL.WEIGHTS", weights[0]))(images[0].swapaxes(0, 1))
    undone = SYMMETRIES["transpose"].undo(turned["instances"])
    equal(CellPredictor(cfg)(images[0])["instances"], undone)


@pytest.mark.parametrize("method", ["fusion", "nms"])
def test_an_ensemble_is_its_models_merged(weights, images, method: str) -> None:
    cfg = tiny_config("TEST.MERGE.METHOD", method, "TEST.MERGE.THRESHOLD", "0.3")
    answers = [ModelFinder(cfg, path)([images[0]])[0] for path in weights]
    expected = merge_answers(answers, method=method, threshold=0.3, max_detections=100)
    equal(CellPredictor(cfg, weights)(images[0])["instances"], expected)
    assert len({len(expected), *map(len, answers)}) > 1
    alone = CellPredictor(tiny_config("MODEL.WEIGHTS", weights[1]))(images[0])["instances"]
    equal(CellPredictor(cfg, weights[1:])(images[0])["instances"], alone)


def test_each_model_of_an_ensemble_has_to_fit(weights, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save({"model": {"a.weight": torch.zeros(1)}}, other)
    with pytest.raises(CellDataError, match="other.pth"):
        CellPredictor(tiny_config(), [weights[0], other])
    with pytest.raises(CellDataError, match="none.pth"):
        CellPredictor(tiny_config(), [*weights, tmp_path / "none.pth"])


def test_larger_images_are_tiled(weights, tmp_path: Path) -> None:
    options = ["MODEL.WEIGHTS", weights[0], "TEST.TILE.SIZE", "64", "TEST.TILE.OVERLAP", "24"]
    options += ["TEST.TTA.ENABLED", "True", "TEST.TTA.TRANSFORMS", "['none', 'rot90']"]
    predictor = CellPredictor(tiny_config(*options))
    generator = np.random.default_rng(1)
    large, small = (generator.integers(0, 255, (*s, 3), np.uint8) for s in ((130, 100), (64, 50)))
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, large)
    expected = list(predict_tiled(predictor.find_batch, ArrayWindows(large), 64, 24))
    assert len(expected) > 1
    for source in (large, path):
        parts = list(predictor.stream(source))
        assert len(parts) == len(expected)
        for part, other in zip(parts, expected, strict=True):
            assert part.image_size == (130, 100)
            assert part.pred_masks.rles == other.pred_masks.rles
    joined = predictor(large)["instances"]
    assert joined.scores.tolist() == sorted(Instances.cat(expected).scores.tolist(), reverse=True)
    assert (joined.scores.diff() <= 0).all() and joined.image_size == (130, 100)
    whole = predictor(small)["instances"]
    equal(whole, predictor.find_batch([small])[0])
    for found, alone in zip(
        predictor.predict_all([small, path, small, small]),
        [whole, joined, whole, whole],
        strict=True,
    ):
        same(found, alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["TEST.TTA.TRANSFORMS", "['none', 'flip']"], "TRANSFORMS.*hflip"),
        (["TEST.TTA.TRANSFORMS", "[]"], "TRANSFORMS"),
        (["TEST.TTA.TRANSFORMS", "['none', 'none']"], "each once"),
        (["TEST.TTA.SCALES", "[1.0, 0.0]"], "SCALES"),
        (["TEST.TTA.SCALES", "[]"], "SCALES"),
        (["TEST.MERGE.METHOD", "wbf"], "METHOD is 'wbf'"),
        (["TEST.MERGE.THRESHOLD", "0.0"], "THRESHOLD is 0"),
        (["MODEL.MASK_ON", "False"], "MASK_ON"),
        (["TEST.TILE.SIZE", "64"], "OVERLAP 128"),
        (["TEST.TILE.SIZE", "-1"], "SIZE is -1"),
    ],
)
def test_settings_out_of_range_are_refused(weights, options: list[str], message: str) -> None:
    cfg = tiny_config("MODEL.WEIGHTS", weights[0], "TEST.TTA.ENABLED", "True", *options)
    if options[0] == "MODEL.MASK_ON":
        cfg.MODEL.WEIGHTS = ""
        cfg.TEST.TTA.ENABLED, cfg.TEST.TILE.SIZE = False, 256
    with pytest.raises(ConfigError, match=message):
        CellPredictor(cfg)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((), np.uint8),
        np.zeros(0, np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 0, 3), np.uint8),
    ],
    ids=lambda a: f"{a.shape} {a.dtype}",
)
@pytest.mark.parametrize("tile", ["0", "64"])
def test_other_arrays_are_refused(weights, bad: np.ndarray, tile: str) -> None:
    options = ("TEST.TILE.SIZE", tile, "TEST.TILE.OVERLAP", "16")
    predictor = CellPredictor(tiny_config("MODEL.WEIGHTS", weights[0], *options))
    found = re.escape(f"(H, W, 3) uint8 of at least one pixel, got {bad.shape} {bad.dtype}")
    for ask in (
        predictor,
        lambda a: predictor.find_batch([a]),
        lambda a: [*predictor.predict_all([a])],
        lambda a: [*predictor.stream(a)],
    ):
        with pytest.raises(ValueError, match=found):
            ask(bad)
