"""Oracle: the masks themselves, found again in the picture by their colour."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from cellseg_d2.structures import RLEMasks, encode_label_map
from cellseg_d2.visualization.colors import CLASS_PALETTE
from cellseg_d2.visualization.overlay import (
    CellVisualizer,
    OverlayStyle,
    cell_metadata,
    draw_ground_truth,
    draw_predictions,
    save_prediction_overlay,
)

GREY = 200
MASKS_ONLY = OverlayStyle(alpha=1.0, outline_width=0, boxes=False, labels="none", scale=1)


def disc(size: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    ys, xs = np.indices(size)
    return ((ys + 0.5 - y) ** 2 + (xs + 0.5 - x) ** 2 <= radius**2).astype(np.uint8)


def encode(mask: np.ndarray) -> dict[str, Any]:
    return mask_util.encode(np.asfortranarray(mask))


def image_of(size: tuple[int, int]) -> np.ndarray:
    return np.full((*size, 3), GREY, np.uint8)


def record_of(masks: list[np.ndarray], classes: list[int]) -> dict[str, Any]:
    return {
        "annotations": [
            {
                "bbox": mask_util.toBbox(encode(mask)).tolist(),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": category,
                "segmentation": encode(mask),
            }
            for mask, category in zip(masks, classes, strict=True)
        ]
    }


def instances_of(masks: list[np.ndarray], classes: list[int], size: tuple[int, int]) -> Instances:
    rles = [encode(mask) for mask in masks]
    boxes = torch.from_numpy(mask_util.toBbox(rles).reshape(-1, 4)).float()
    boxes[:, 2:] += boxes[:, :2]
    return Instances(
        size,
        pred_boxes=Boxes(boxes),
        scores=torch.linspace(0.95, 0.3, len(masks)),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
        pred_masks=RLEMasks(rles, size),
    )


def colored(picture: np.ndarray) -> np.ndarray:
    return (picture != GREY).any(axis=2)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return np.logical_and(first, second).sum() / np.logical_or(first, second).sum()


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("size", [(33, 35), (64, 101), (397, 482)])
def test_colored_pixels_are_exactly_the_mask(size: tuple[int, int], scale: int) -> None:
    mask = disc(size, size[0] * 0.4, size[1] * 0.6, 9.3) | disc(size, 5, 3, 6)
    style = OverlayStyle(1.0, 0, False, labels="none", scale=scale)
    picture = draw_ground_truth(image_of(size), record_of([mask], [1]), style=style, legend=False)
    assert picture.shape == (size[0] * scale, size[1] * scale, 3)
    expected = np.kron(mask, np.ones((scale, scale), np.uint8)).astype(bool)
    assert np.array_equal((picture == CLASS_PALETTE[1]).all(axis=2), expected)
    assert np.array_equal(colored(picture), expected)


def test_outlines_are_centred_on_the_border() -> None:
    size = (60, 60)
    mask = disc(size, 30, 30, 15)
    style = OverlayStyle(0.0, 2.0, False, labels="none", scale=4)
    picture = draw_ground_truth(image_of(size), record_of([mask], [0]), style=style, legend=False)
    ys, xs = np.nonzero(colored(picture))
    assert (ys.mean(), xs.mean()) == pytest.approx((119.5, 119.5), abs=0.05)
    large = np.kron(mask, np.ones((4, 4), np.uint8)).astype(bool)
    inside = np.logical_and(colored(picture), large).sum()
    assert inside / colored(picture).sum() == pytest.approx(0.5, abs=0.03)


def test_with_the_usual_outline_the_colored_area_is_the_mask_to_97_percent() -> None:
    size = (120, 120)
    masks = [disc(size, 60, 60, 30)]
    style = OverlayStyle(boxes=False, labels="none", outline_width=1.0, scale=3)
    picture = draw_ground_truth(image_of(size), record_of(masks, [0]), style=style, legend=False)
    expected = np.kron(masks[0], np.ones((3, 3), np.uint8)).astype(bool)
    assert overlap(colored(picture), expected) >= 0.97


def test_holes_stay_open() -> None:
    size = (40, 40)
    mask = disc(size, 20, 20, 15) & ~disc(size, 20, 20, 6) & 1
    picture = draw_ground_truth(
        image_of(size), record_of([mask], [0]), style=MASKS_ONLY, legend=False
    )
    assert np.array_equal(colored(picture), mask.astype(bool))


def test_masks_are_blended() -> None:
    size = (30, 30)
    mask = disc(size, 15, 15, 8)
    style = OverlayStyle(0.25, 0, False, labels="none", scale=1)
    picture = draw_ground_truth(image_of(size), record_of([mask], [2]), style=style, legend=False)
    expected = 0.75 * GREY + 0.25 * np.array(CLASS_PALETTE[2])
    assert np.abs(picture[15, 15] - expected).max() <= 1.5


def test_each_class_has_its_color_and_small_cells_lie_on_top() -> None:
    size = (80, 80)
    masks = [disc(size, 30, 30, 4), disc(size, 30, 30, 20), disc(size, 65, 65, 8)]
    picture = draw_ground_truth(
        image_of(size), record_of(masks, [3, 0, 5]), style=MASKS_ONLY, legend=False
    )
    assert tuple(picture[30, 30]) == CLASS_PALETTE[3]
    assert tuple(picture[30, 45]) == CLASS_PALETTE[0]
    assert tuple(picture[65, 65]) not in CLASS_PALETTE and colored(picture)[65, 65]


def test_predictions_are_drawn_like_ground_truth() -> None:
    size = (50, 70)
    masks = [disc(size, 20, 20, 8), disc(size, 30, 50, 11)]
    instances = instances_of(masks, [1, 3], size)
    picture = draw_predictions(image_of(size), instances, style=MASKS_ONLY)
    truth = draw_ground_truth(image_of(size), record_of(masks, [1, 3]), style=MASKS_ONLY)
    assert np.array_equal(picture, truth)
    instances.pred_masks = instances.pred_masks.to_bit_masks().tensor
    assert np.array_equal(draw_predictions(image_of(size), instances, style=MASKS_ONLY), truth)


def test_masks_are_never_held_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an N×H×W array was asked for")

    for name in ("__array__", "to_bit_masks", "__iter__"):
        monkeypatch.setattr(RLEMasks, name, refuse)
    monkeypatch.setattr(mask_util, "decode", refuse)
    size = (50, 70)
    instances = instances_of([disc(size, 20, 20, 8)], [1], size)
    visualizer = CellVisualizer(image_of(size))
    assert isinstance(visualizer, Visualizer)
    assert colored(visualizer.draw_instance_predictions(instances).get_image()).any()


@pytest.mark.parametrize("size", [(1, 1), (33, 35), (300, 200)])
def test_an_image_without_cells_is_drawn_bare(size: tuple[int, int]) -> None:
    style = OverlayStyle(scale=1)
    for picture in (
        draw_ground_truth(image_of(size), {"annotations": []}, style=style, legend=False),
        draw_ground_truth(image_of(size), {}, style=style, legend=False),
        draw_predictions(image_of(size), instances_of([], [], size), style=style, legend=False),
    ):
        assert np.array_equal(picture, image_of(size))
    assert draw_ground_truth(image_of(size), {}).dtype == np.uint8


def test_empty_masks_are_left_out() -> None:
    size = (30, 30)
    masks = [np.zeros(size, np.uint8), disc(size, 15, 15, 5)]
    picture = draw_predictions(
        image_of(size), instances_of(masks, [0, 1], size), style=MASKS_ONLY, legend=False
    )
    assert np.array_equal(colored(picture), masks[1].astype(bool))


def test_boxes_polygons_and_annotations_without_masks_are_drawn() -> None:
    size = (40, 40)
    annotation = {"bbox": [10, 10, 30, 25], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    style = OverlayStyle(1.0, 0, True, box_width=2, labels="none", scale=1)
    picture = draw_ground_truth(
        image_of(size), {"annotations": [annotation]}, style=style, legend=False
    )
    assert colored(picture)[10, 20] and not colored(picture)[17, 20]
    annotation["segmentation"] = [[10, 10, 30, 10, 30, 25, 10, 25]]
    picture = draw_ground_truth(
        image_of(size), {"annotations": [annotation]}, style=MASKS_ONLY, legend=False
    )
    assert colored(picture).sum() == 20 * 15


def test_labels_are_drawn_in_full_and_only_if_wanted() -> None:
    size = (200, 300)
    instances = instances_of([disc(size, 100, 150, 20)], [0], size)
    pictures = {
        labels: draw_predictions(
            image_of(size),
            instances,
            style=OverlayStyle(0, 0, False, labels=labels, scale=1),
            legend=False,
        )
        for labels in ("fit", "all", "none")
    }
    assert not colored(pictures["none"]).any()
    assert np.array_equal(pictures["fit"], pictures["all"])
    ys, xs = np.nonzero(colored(pictures["fit"]))
    # Above the box, whose upper left corner is (130, 80); "class1 0.95" in 11 pixels.
    assert ys.max() <= 80 and 130 <= xs.min() + 1 and 55 <= xs.max() - xs.min() <= 90
    assert 9 <= ys.max() - ys.min() <= 18


def test_labels_that_fit_cover_no_other_one() -> None:
    size = (100, 400)
    masks = [disc(size, 50, 20 + 8 * k, 5) for k in range(40)]
    counts = {}
    for labels in ("fit", "all"):
        visualizer = CellVisualizer(image_of(size), style=OverlayStyle(labels=labels, scale=1))
        visualizer.draw_instance_predictions(instances_of(masks, [0] * 40, size))
        texts = visualizer.output.ax.texts
        counts[labels] = len(texts)
        if labels == "fit":
            renderer = visualizer.output.canvas.get_renderer()
            extents = [text.get_window_extent(renderer) for text in texts]
            for index, extent in enumerate(extents):
                assert not any(extent.overlaps(other) for other in extents[:index])
            # The best prediction is labelled before all others.
            assert texts[0].get_text() == "class1 0.95"
    assert counts["all"] == 40 and 3 <= counts["fit"] < 40


def test_names_with_signs_of_formulas_are_drawn_as_they_are() -> None:
    size = (60, 200)
    metadata = cell_metadata(["$x_{", "a_b^c"])
    style = OverlayStyle(labels="all", scale=1)
    record = record_of([disc(size, 40, 40, 9), disc(size, 40, 140, 9)], [0, 1])
    assert draw_ground_truth(image_of(size), record, metadata, style).shape[1] >= 200


def test_classes_beyond_the_names_are_counted_in_the_legend() -> None:
    size = (60, 60)
    record = record_of([disc(size, 30, 30, 9)], [5])
    picture = draw_ground_truth(image_of(size), record, cell_metadata(["only"]), MASKS_ONLY)
    color = picture[30, picture.shape[1] // 2]
    assert (picture[60:] == color).all(axis=2).sum() > 100


def test_keypoints_are_refused() -> None:
    with pytest.raises(ValueError, match="keypoints"):
        CellVisualizer(image_of((9, 9))).overlay_instances(boxes=[[0, 0, 5, 5]], keypoints=[1])


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="0 masks for 1 boxes"):
        CellVisualizer(image_of((9, 9))).overlay_instances(boxes=[[0, 0, 5, 5]], masks=[])


def test_small_images_are_enlarged_and_large_ones_are_not() -> None:
    shapes = {
        size: draw_ground_truth(image_of((size, size)), {}, legend=False).shape[0]
        for size in (33, 192, 500, 1000, 2000)
    }
    assert shapes == {33: 396, 192: 1536, 500: 1500, 1000: 2000, 2000: 2000}


def test_the_saved_overlay_is_the_picture(tmp_path: Path) -> None:
    size = (40, 60)
    instances = instances_of([disc(size, 20, 20, 8)], [1], size)
    path = save_prediction_overlay(
        tmp_path / "new" / "a.png", image_of(size), instances, ["x", "y"]
    )
    saved = np.asarray(Image.open(path))
    assert np.array_equal(saved, draw_predictions(image_of(size), instances, cell_metadata("xy")))
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]


@pytest.mark.slow
def test_seven_hundred_cells_take_seconds() -> None:
    size = (1000, 1000)
    label_map = np.zeros(size, np.int32)
    cell = disc((24, 24), 12, 12, 12)
    for k in range(700):
        y, x = 8 + 38 * (k // 28), 8 + 35 * (k % 28)
        label_map[y : y + 24, x : x + 24] = cell.astype(np.int32) * (k + 1)
    cells = encode_label_map(label_map)
    instances = Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(cells.boxes)),
        scores=torch.linspace(1, 0, 700),
        pred_classes=torch.arange(700) % 4,
        pred_masks=RLEMasks(cells.rles(), size),
    )
    start = time.perf_counter()
    draw_predictions(image_of(size), instances)
    # 3 s on one quiet core; without one pass for all outlines it is over 20.
    assert time.perf_counter() - start < 12


def test_real_nuclei_are_outlined_where_they_are(real_data: Path) -> None:
    from cellseg_d2.data import load_cell_dicts, read_image

    (record,) = load_cell_dicts(real_data / "layout_sample")
    image = read_image(record["file_name"], "BGR")
    picture = draw_ground_truth(image, record, style=MASKS_ONLY, legend=False)
    union = mask_util.decode(
        mask_util.merge([annotation["segmentation"] for annotation in record["annotations"]])
    ).astype(bool)
    assert overlap((picture != image).any(axis=2), union) >= 0.999
    red, blue = image[..., 0][union].mean(), image[..., 2][union].mean()
    assert blue > red
