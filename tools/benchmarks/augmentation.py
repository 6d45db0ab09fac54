"""Augmentation recipes against albumentations 2.0.8, and by the number of cells: 1000x1000 pixels.

A recipe's steps are drawn, so the two libraries' results cannot be equal; that the ids that come
out went in is asserted instead (of masks, that values stay 0 and 1).

albumentations is left unseeded: a seed makes all steps of a 2.0.8 recipe draw the same numbers, so
that they come together or not at all (30 % of report 5's draws then do nothing, where 3 % should).

A draw costs 0 to 100 ms by what is in it, and half of report 5's have no warp, so that a median of
draws falls on either side: times are **means over draws**, the cost of an image in training.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.data import transforms as T

from cellseg_d2.data.augmentation import RECIPES, CellAugInput, build_recipe
from cellseg_d2.data.augmentation.cell_bank import CellBank, cut_out
from cellseg_d2.data.augmentation.copy_paste import CopyPaste
from cellseg_d2.data.dataset_mapper import seeded_random
from cellseg_d2.data.synthetic import make_image, make_label_map

from .timing import Comparison, Figure, median_seconds

SIZE = (1000, 1000)
CELLS = 600
# A mask per instance makes a draw of 0.1 to 4 s, a label map one of 0 to 100 ms.
DRAWS_MASKS, DRAWS_LABEL_MAP = 12, 200
# Of a draw's repeats the fastest counts: whatever else a machine does only adds to a time.
DRAWS_CELLS, REPEATS_CELLS, SECONDS_CELLS = 20, 3, 0.05
DRAWS_PLACES = 40


def run() -> Iterator[Comparison | Figure]:
    """Yield each result as it is measured."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for newer releases
    try:
        import albumentations
    except ImportError:
        print(
            "albumentations is not installed, and not compared with: "
            "pip install --no-deps -r requirements-bench.txt",
            file=sys.stderr,
        )
    else:
        for name, goal in (("report1", 100), ("report5", 30)):
            yield per_instance(albumentations, name, goal)
            yield one_label_map(albumentations, name)
    for name in RECIPES:
        if name != "none":  # which takes no time at all
            yield many_cells(name, build_recipe(name))
    for max_cover in (0.2, 1.0):
        paste = CopyPaste(_bank(), max_cover=max_cover, prob=1.0)
        yield many_cells(f"copy-paste, max_cover {max_cover:g}", [paste])
    yield placed(CELLS)
    yield placed(2 * CELLS)


def reference_recipe(albumentations: Any, name: str) -> list[Any]:
    """Return the recipe in albumentations 2's terms, its ranges those of ``RECIPES``."""
    a, border = albumentations, cv2.BORDER_REFLECT_101
    # The sigmas are OpenCV's of these kernels; 0, for that rule, makes 2.0.8 divide by zero.
    if name == "report1":
        return [
            a.HorizontalFlip(p=0.5),
            a.VerticalFlip(p=0.5),
            a.RandomRotate90(p=0.7),
            a.Rotate((-20, 20), border_mode=border, p=0.3),
            a.ColorJitter(0.2, 0.2, 0.2, 0.05, p=0.5),
            a.OneOf(
                [
                    a.GaussNoise((10**0.5 / 255, 50**0.5 / 255)),
                    a.GaussianBlur((3, 7), sigma_limit=(0.8, 1.4)),
                ],
                p=0.15,
            ),
        ]
    return [
        a.HorizontalFlip(p=0.5),
        a.VerticalFlip(p=0.5),
        a.OneOf([a.RandomBrightnessContrast(0.2, 0.2), a.CLAHE((1, 4)), a.RandomGamma()], p=0.7),
        a.OneOf([a.GaussianBlur((3, 5), sigma_limit=(0.8, 1.1)), a.MedianBlur((3, 5))], p=0.3),
        a.OneOf(
            [
                a.ElasticTransform(120, 6, border_mode=border),
                a.GridDistortion(5, 0.3, normalized=False, border_mode=border),
                a.OpticalDistortion(2, border_mode=border),
            ],
            p=0.5,
        ),
    ]


def per_instance(albumentations: Any, name: str, goal: float) -> Comparison:
    """Label maps of two classes against one mask per instance."""
    image, label_map = _sample(CELLS)
    masks = [(label_map == i).astype(np.uint8) for i in range(1, CELLS + 1)]
    compose = albumentations.Compose(reference_recipe(albumentations, name))

    def reference(_: int) -> None:
        moved = compose(image=image, masks=masks)["masks"]
        if len(moved) != CELLS or any(m.max() > 1 for m in moved[::100]):
            raise AssertionError(f"{name}: albumentations changed the masks")

    apply = _ours(build_recipe(name), image, _classes(label_map))
    reference_times = _times(reference, DRAWS_MASKS)
    our_times = _times(apply, DRAWS_LABEL_MAP)
    _check_ids(name, label_map, (m for d in range(DRAWS_MASKS) for m in apply(d)))
    return Comparison(
        f"{name}: mean of draws",
        f"albumentations, {CELLS} masks",
        float(np.mean(reference_times)),
        float(np.mean(our_times)),
        goal,
    )


def one_label_map(albumentations: Any, name: str) -> Comparison:
    """One label map with all cells, on both sides, in turns."""
    image, label_map = _sample(CELLS)
    compose = albumentations.Compose(reference_recipe(albumentations, name))
    apply = _ours(build_recipe(name), image, [label_map])
    times = np.array(
        [
            (
                median_seconds(lambda: compose(image=image, mask=label_map), 1)[1],
                median_seconds(lambda draw=draw: apply(draw), 1)[1],
            )
            for draw in range(DRAWS_LABEL_MAP)
        ]
    )
    _check_ids(name, label_map, (m for d in range(DRAWS_MASKS) for m in apply(d)))
    _check_ids(
        f"{name} in albumentations",
        label_map,
        (compose(image=image, mask=label_map)["mask"] for _ in range(DRAWS_MASKS)),
    )
    reference_seconds, our_seconds = times.mean(axis=0)
    return Comparison(
        f"{name}: mean of draws, one label map",
        "albumentations, one label map",
        reference_seconds,
        our_seconds,
        goal=1,
    )


def many_cells(name: str, augmentations: Sequence[T.Augmentation]) -> Comparison:
    """Label maps of 1,000 cells against 10, the same image and the same draws."""
    image, _ = _sample(CELLS)
    apply = {
        cells: _ours(augmentations, image, _classes(_sample(cells)[1])) for cells in (10, 1000)
    }
    fastest: dict[int, list[float]] = {10: [], 1000: []}
    for draw in range(DRAWS_CELLS):
        times: dict[int, list[float]] = {10: [], 1000: []}
        # In turns, so that a change in the machine's load meets both.
        while len(times[10]) < REPEATS_CELLS or sum(times[10]) < SECONDS_CELLS:
            for cells, function in apply.items():
                _, seconds = median_seconds(lambda f=function, draw=draw: f(draw), 1)
                times[cells].append(seconds)
        for cells, taken in times.items():
            fastest[cells].append(min(taken))
    few, many = (float(np.mean(fastest[cells])) for cells in (10, 1000))
    return Comparison(
        f"{name}: 1,000 cells", "the same image with 10 cells", few, many, goal=1.3, at_most=True
    )


def placed(cells: int) -> Figure:
    """How many of the cells to be pasted find room in a dense image, by the default share."""
    image, label_map = _sample(cells)
    taken = 0
    for draw in range(DRAWS_PLACES):
        sample = CellAugInput(image, [label_map], [0], {0: np.arange(1, cells + 1)})
        with seeded_random((0, draw)):
            CopyPaste(_bank(), max_cells=1, prob=1.0)(sample)
        taken += len(sample.kept_ids.get(1, ()))
    covered = 100 * np.count_nonzero(label_map) / label_map.size
    name = f"copy-paste: cells placed among {cells} that cover {covered:.0f} % of the image"
    return Figure(name, 100 * taken / DRAWS_PLACES, "%")


def _sample(cells: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of tissue, always the same, and a label map of ids 1 to ``cells``."""
    image, _ = make_image(np.random.default_rng(0), SIZE, CELLS)
    return image, make_label_map(np.random.default_rng(cells), SIZE, cells)


def _classes(label_map: np.ndarray) -> list[np.ndarray]:
    """Half of the cells in each of two classes."""
    half = label_map.max() // 2
    return [label_map * (label_map <= half), label_map * (label_map > half)]


@functools.cache
def _bank() -> CellBank:
    image, label_map = _sample(CELLS)
    ids = np.random.default_rng(0).permutation(np.arange(1, CELLS + 1))[:100]
    return CellBank({1: cut_out(image, label_map, ids)})


def _ours(
    augmentations: Sequence[T.Augmentation], image: np.ndarray, label_maps: list[np.ndarray]
) -> Callable[[int], list[np.ndarray]]:
    """A function from the number of a draw to the label maps that it makes."""
    recipe = T.AugmentationList(augmentations)

    def apply(draw: int) -> list[np.ndarray]:
        kept_ids = {0: np.zeros(0, np.int32), 1: np.zeros(0, np.int32)}
        # Copy-paste writes into the label maps that it is left with, never into these.
        sample = CellAugInput(image, list(label_maps), range(len(label_maps)), kept_ids)
        with seeded_random((0, draw)):
            recipe(sample)
        return sample.label_maps

    return apply


def _times(function: Callable[[int], Any], draws: int) -> list[float]:
    return [median_seconds(lambda draw=draw: function(draw), 1)[1] for draw in range(draws)]


def _check_ids(name: str, before: np.ndarray, after: Iterator[np.ndarray]) -> None:
    """Raise unless the label maps hold only ids that were there."""
    ids = np.append(np.unique(before), 0)
    for label_map in after:
        if not np.isin(np.unique(label_map), ids).all():
            raise AssertionError(f"{name}: ids came out that had not gone in")
