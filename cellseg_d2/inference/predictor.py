"""From an image array to its cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from ..checkpoint import CellCheckpointer
from ..config import require_fixed_normalization
from ..data.augmentation import build_augmentations


class CellPredictor:
    """A model with its weights, applied to one image at a time.

    It takes RGB whatever the model was trained on; ``INPUT.FORMAT`` says what the model gets. The
    image is resized as ``INPUT.MIN_SIZE_TEST`` and ``MAX_SIZE_TEST`` say, the answer is in the
    coordinates of the image given.

    Args:
        cfg: with ``MODEL.WEIGHTS``; not changed.

    Raises:
        CellDataError: for weights that are not given, not there, unsafe to load, or not this
            model's.
        ConfigError: for a config whose normalisation only training settles.
    """

    def __init__(self, cfg: CfgNode) -> None:
        require_fixed_normalization(cfg)
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg).eval()
        CellCheckpointer(self.model, complete=True).load(cfg.MODEL.WEIGHTS, checkpointables=[])
        self.augmentations = T.AugmentationList(build_augmentations(cfg, is_train=False))

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """Find the cells of one image.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            ``{"instances": Instances}`` as ``DefaultPredictor`` answers, with ``pred_boxes``
            (XYXY, pixels of ``image``), ``scores`` in [0, 1], ``pred_classes`` from 0, and
            ``pred_masks`` (``RLEMasks``), best score first.

        Raises:
            ValueError: for an array of another shape or type.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
        sample = T.AugInput(image)
        self.augmentations(sample)
        array = sample.image if self.cfg.INPUT.FORMAT == "RGB" else sample.image[:, :, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        height, width = image.shape[:2]
        # In full precision, as the evaluation that the model's scores come from.
        with torch.no_grad():
            return self.model([{"image": tensor, "height": height, "width": width}])[0]
