"""From a Detectron2 dict to the model's input: one image and its label maps, augmented together."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from ..errors import CellDataError, ConfigError
from ..structures import LabelMasks, encode_label_map
from .augmentation import CellAugInput, build_augmentations
from .datasets import label_components
from .target_generator import CenterBoundaryTargets
from .tiff import read_image, read_label_map

logger = logging.getLogger(__name__)


class CellDatasetMapper:
    """Reads, augments and packs one image; its cost does not grow with the number of cells.

    It reads the label maps that the dict names and never decodes annotations.

    Returns, when called, a dict with ``file_name``, ``image_id``, ``height``, ``width``, ``image``
    (uint8 tensor (3, H, W) in the order of ``INPUT.FORMAT``) and, when training, ``instances``:
    ``Instances`` with ``gt_boxes`` (tight), ``gt_classes`` and ``gt_masks`` (``LabelMasks``). An
    image without instances gets an empty set and is trained on as background. With
    ``MODEL.CENTER_BOUNDARY_HEAD.ENABLED`` also ``center_map`` and ``boundary_map``, made from the
    augmented label maps (``CenterBoundaryTargets``).
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        channel_order: str,
        max_pixels: int,
        intensity_range: tuple[float, float] | None,
        seed: int,
        target_generator: Callable[[LabelMasks], dict[str, torch.Tensor]] | None = None,
    ) -> None:
        """See ``INPUT.CELL`` in ``cellseg_d2.config`` for the arguments.

        Args:
            is_train: whether to read the label maps and return instances.
            augmentations: applied in order, to the image and the label maps together.
            image_format: "RGB" or "BGR", what the model takes.
            channel_order: "RGB" or "BGR", what the files hold.
            max_pixels: larger files are refused.
            intensity_range: what becomes 0 to 255 in images of more than 8 bits; None for the
                file's own.
            seed: of the augmentations; a sample's numbers depend on it and on its position.
            target_generator: when training, makes further entries of the mapped dict from the
                augmented instances; None for none.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.channel_order = channel_order
        self.max_pixels = max_pixels
        self.intensity_range = intensity_range
        self.seed = seed
        self.target_generator = target_generator
        mode = "training" if is_train else "inference"
        logger.info("augmentations in %s: %s", mode, self.augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read the arguments off a config.

        Raises:
            ConfigError: for upstream options that this mapper does not honour.
        """
        refuse_unsupported(cfg)
        head = cfg.MODEL.CENTER_BOUNDARY_HEAD
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "channel_order": cfg.INPUT.CELL.CHANNEL_ORDER,
            "max_pixels": cfg.INPUT.CELL.MAX_PIXELS,
            "intensity_range": tuple(cfg.INPUT.CELL.INTENSITY_RANGE) or None,
            "seed": cfg.SEED,
            "target_generator": CenterBoundaryTargets(head.CENTER_SIGMA) if head.ENABLED else None,
        }

    def __call__(self, dataset_dict: dict[str, Any], position: int = 0) -> dict[str, Any]:
        """Map one dict.

        Args:
            dataset_dict: as ``load_cell_dicts`` makes it; not changed.
            position: of the sample in the training stream.

        Raises:
            CellDataError: where a file cannot be used, or no longer is what was parsed.
        """
        path = dataset_dict["file_name"]
        image = read_image(
            path,
            self.channel_order,
            max_pixels=self.max_pixels,
            intensity_range=self.intensity_range,
        )
        size = (dataset_dict["height"], dataset_dict["width"])
        if image.shape[:2] != size:
            raise CellDataError(
                path,
                f"an image of {image.shape[0]}x{image.shape[1]} pixels (height x width)",
                f"{size[0]}x{size[1]}, as when the data set was parsed",
                "do not change files during a run; start again",
            )
        categories, label_maps = self._read_label_maps(dataset_dict) if self.is_train else ([], [])
        kept_ids = dataset_dict["kept_ids"] if self.is_train else {}
        sample = CellAugInput(image, label_maps, categories, kept_ids)
        with seeded_random((self.seed, position)):
            self.augmentations(sample)
        image = sample.image if self.image_format == "RGB" else sample.image[:, :, ::-1]
        mapped = {k: dataset_dict[k] for k in ("file_name", "image_id", "height", "width")}
        mapped["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.is_train:
            mapped["instances"] = build_instances(
                sample.label_maps, sample.categories, sample.kept_ids, sample.image.shape[:2]
            )
            if self.target_generator:
                mapped |= self.target_generator(mapped["instances"].gt_masks)
        return mapped

    def _read_label_maps(self, dataset_dict: dict[str, Any]) -> tuple[list[int], list[np.ndarray]]:
        size = (dataset_dict["height"], dataset_dict["width"])
        categories, label_maps = [], []
        for category, path in sorted(dataset_dict["label_file_names"].items()):
            label_map = read_label_map(path, max_pixels=self.max_pixels, expected_size=size)
            if dataset_dict["instances"] == "components":
                label_map = label_components(label_map)
            categories.append(category)
            label_maps.append(label_map)
        return categories, label_maps


def build_instances(
    label_maps: Sequence[np.ndarray],
    categories: Sequence[int],
    kept_ids: dict[int, np.ndarray],
    image_size: tuple[int, int],
) -> Instances:
    """Pack label maps into the ground truth that the model's heads read.

    Args:
        label_maps: (H, W) int32 arrays, one per category that has a file.
        categories: the category of each.
        kept_ids: for each category the ids that the instance rule kept.
        image_size: (H, W), which holds for no label map at all.

    Returns:
        ``Instances`` with ``gt_boxes`` float32 XYXY, ``gt_classes`` int64 and ``gt_masks``, one per
        id that has a pixel left, ordered by category and id.
    """
    # An image without instances still concatenates to arrays of the right shape.
    boxes: list[np.ndarray] = [np.zeros((0, 4))]
    layer_maps: list[np.ndarray] = []
    classes, ids, layers = ([np.zeros(0, np.int64)] for _ in range(3))
    for category, label_map in zip(categories, label_maps, strict=True):
        label_map = np.ascontiguousarray(label_map)
        found = encode_label_map(label_map)
        kept = np.isin(found.ids, kept_ids[category])
        if not kept.any():
            continue
        count = int(kept.sum())
        boxes.append(found.boxes[kept])
        ids.append(found.ids[kept])
        classes.append(np.full(count, category))
        layers.append(np.full(count, len(layer_maps)))
        layer_maps.append(label_map)
    if not layer_maps:
        layer_maps = [np.zeros(image_size, np.int32)]
    return Instances(
        image_size,
        gt_boxes=Boxes(torch.from_numpy(np.concatenate(boxes).astype(np.float32))),
        gt_classes=torch.from_numpy(np.concatenate(classes).astype(np.int64)),
        gt_masks=LabelMasks(
            torch.from_numpy(np.stack(layer_maps)),
            torch.from_numpy(np.concatenate(layers).astype(np.int64)),
            torch.from_numpy(np.concatenate(ids).astype(np.int64)),
        ),
    )


def refuse_unsupported(cfg: CfgNode) -> None:
    """Refuse upstream options that would otherwise be ignored in silence.

    Raises:
        ConfigError: naming the key, its value and what to use instead.
    """
    wanted = {
        "INPUT.RANDOM_FLIP": (cfg.INPUT.RANDOM_FLIP, "none", "flips belong to INPUT.CELL.RECIPE"),
        "INPUT.MASK_FORMAT": (cfg.INPUT.MASK_FORMAT, "bitmask", "masks come from label maps"),
        "MODEL.KEYPOINT_ON": (cfg.MODEL.KEYPOINT_ON, False, "cells have no keypoints"),
        "MODEL.LOAD_PROPOSALS": (cfg.MODEL.LOAD_PROPOSALS, False, "proposals come from the RPN"),
        "INPUT.COLOR_AUG_SSD": (
            cfg.INPUT.COLOR_AUG_SSD,
            False,
            "colours belong to INPUT.CELL.RECIPE",
        ),
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": (
            cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA,
            1.0,
            "crops are drawn blindly",
        ),
        "DATALOADER.ASPECT_RATIO_GROUPING": (
            cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            False,
            "grouping buffers samples, and a run could not resume exactly",
        ),
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": (
            cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            False,
            "images without cells are good background",
        ),
        "DATALOADER.SAMPLER_TRAIN": (
            cfg.DATALOADER.SAMPLER_TRAIN,
            "TrainingSampler",
            "rare classes belong to DATASETS.CELL.REPEAT_THRESHOLD",
        ),
        "SOLVER.REFERENCE_WORLD_SIZE": (
            cfg.SOLVER.REFERENCE_WORLD_SIZE,
            0,
            "the batch of all processes together is SOLVER.IMS_PER_BATCH",
        ),
        "TEST.PRECISE_BN.ENABLED": (
            cfg.TEST.PRECISE_BN.ENABLED,
            False,
            "averaged weights belong to SOLVER.EMA",
        ),
        "TEST.AUG.ENABLED": (cfg.TEST.AUG.ENABLED, False, "it belongs to TEST.TTA"),
    }
    for key, (value, expected, reason) in wanted.items():
        if value != expected:
            raise ConfigError(f"{key} is {value!r}; expected {expected!r}: {reason}")


@contextlib.contextmanager
def seeded_random(seed: Sequence[int]) -> Iterator[None]:
    """Run a block with NumPy's and Python's global generators seeded, then put them back.

    Upstream's augmentations draw from NumPy's global generator; this makes any of them repeatable
    and leaves no trace on the process.

    Args:
        seed: integers; each is taken modulo 2^32.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    words = [int(s) % 2**32 for s in seed]
    np.random.seed(words)
    random.seed(repr(words))
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
