"""What finds cells in images: a trained model, and the type that all else here wraps and gives.

A finder takes images (H, W, 3) uint8 RGB of any sizes and answers each with ``Instances`` of that
image's size, on the CPU: ``pred_boxes`` (XYXY, pixels), ``scores`` in [0, 1], ``pred_classes`` from
0 and ``pred_masks`` (``RLEMasks``), best score first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances

from ..checkpoint import CellCheckpointer
from ..data.augmentation import build_augmentations
from ..data.tiff_window import check_image_array

Finder = Callable[[list[np.ndarray]], list[Instances]]

BATCH_PIXELS = 2**21
"""Pixels of the images that a model is given at a time, if they are more than one."""


class ModelFinder:
    """A model with its weights; a finder, at any scale.

    It takes RGB whatever the model was trained on; ``INPUT.FORMAT`` says what the model gets. An
    image is resized as ``INPUT.MIN_SIZE_TEST`` and ``MAX_SIZE_TEST`` say, and masks are pasted at
    the size of the image given. Images of one size run together, up to ``BATCH_PIXELS``; none is
    padded to another's size, so that an answer does not depend on the company.

    Args:
        cfg: of the model; not changed.
        weights: path or address of the checkpoint.

    Raises:
        CellDataError: for weights that are not given, not there, unsafe to load, or not this
            model's.
    """

    def __init__(self, cfg: CfgNode, weights: str) -> None:
        self.model = build_model(cfg.clone()).eval()
        CellCheckpointer(self.model, complete=True).load(weights, checkpointables=[])
        self.augmentations = T.AugmentationList(build_augmentations(cfg, is_train=False))
        self.image_format = cfg.INPUT.FORMAT

    def __call__(self, images: Sequence[np.ndarray], scale: float = 1.0) -> list[Instances]:
        """Find the cells of some images.

        Args:
            images: (H, W, 3) uint8, RGB.
            scale: of the model's input over what ``INPUT.MIN_SIZE_TEST`` makes of the image.

        Returns:
            See the module; in the coordinates of the images, whatever the scale.

        Raises:
            ValueError: for an array of another shape or type.
        """
        inputs = [self._model_input(image, scale) for image in images]
        answers: dict[int, Instances] = {}
        for batch in _batches_of_one_size([tuple(item.shape[1:]) for item in inputs]):
            items = [
                {
                    "image": inputs[index],
                    "height": images[index].shape[0],
                    "width": images[index].shape[1],
                }
                for index in batch
            ]
            with torch.no_grad():
                outputs = self.model(items)
            for index, output in zip(batch, outputs, strict=True):
                answers[index] = output["instances"].to("cpu")
        return [answers[index] for index in range(len(images))]

    def _model_input(self, image: np.ndarray, scale: float) -> torch.Tensor:
        """Resize and turn (H, W, 3) uint8 RGB into (3, H', W') uint8 in the model's order."""
        check_image_array(image)
        sample = T.AugInput(image)
        self.augmentations(sample)
        array = sample.image
        if scale != 1:
            # From the image itself: to resize twice would blur.
            height, width = (max(1, round(scale * side)) for side in array.shape[:2])
            resize = T.ResizeTransform(*image.shape[:2], height, width)
            array = resize.apply_image(np.ascontiguousarray(image))
        if self.image_format == "BGR":
            array = array[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def _batches_of_one_size(sizes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Group indices of equal sizes (height, width), as many as ``BATCH_PIXELS`` allow."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, size in enumerate(sizes):
        groups[size].append(index)
    for (height, width), group in groups.items():
        count = max(1, BATCH_PIXELS // max(1, height * width))
        for begin in range(0, len(group), count):
            yield group[begin : begin + count]
