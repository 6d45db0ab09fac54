"""Every configuration key that this plug-in adds to Detectron2's, and how a config is loaded."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.projects.point_rend import add_pointrend_config

from .config_checks import check_ranges
from .config_file import YAML_ERRORS, check_bases
from .errors import ConfigError

logger = logging.getLogger(__name__)

# What yacs and PyYAML raise for a file or option that is no config; yacs asserts a lot.
_MERGE_ERRORS = (AssertionError, NotImplementedError, *YAML_ERRORS)


def add_cellseg_config(cfg: CN) -> None:
    """Add this plug-in's keys, and set the upstream keys that it needs to hold.

    Args:
        cfg: a config made by ``detectron2.config.get_cfg``; changed in place.
    """
    # MODEL.POINT_HEAD, some of MODEL.ROI_MASK_HEAD; read by CellPointRendMaskHead alone.
    add_pointrend_config(cfg)

    cfg.DATASETS.CELL = CN()
    # Folder that holds train/ (and test_release/, test_image_name_to_ids.json), or image folders.
    cfg.DATASETS.CELL.ROOT = ""
    # Name of each class; classK.tif is entry K-1. As many as MODEL.ROI_HEADS.NUM_CLASSES.
    cfg.DATASETS.CELL.CLASS_NAMES = ["class1", "class2", "class3", "class4"]
    # What an instance is: "ids" (one per id of a label map) or "components" (connected components).
    cfg.DATASETS.CELL.INSTANCES = "ids"
    # Instances of fewer pixels than this are dropped and counted.
    cfg.DATASETS.CELL.MIN_AREA = 1
    # The validation split: a list of image names, or else a fraction of the images drawn by seed.
    cfg.DATASETS.CELL.VAL_NAMES = []
    cfg.DATASETS.CELL.VAL_FRACTION = 0.1
    cfg.DATASETS.CELL.SPLIT_SEED = 0
    # Regular expression that yields the patient from an image's name; whole patients are held out.
    cfg.DATASETS.CELL.GROUP_PATTERN = ""
    # Classes in a smaller share of the images than this are rare, and images that hold them come up
    # more often in an epoch (cellseg_d2/data/repeat_factors.py); 0 shows each image once.
    cfg.DATASETS.CELL.REPEAT_THRESHOLD = 0.0
    # Where parsed annotations are kept; "" is OUTPUT_DIR/annotation_cache.
    cfg.DATASETS.CELL.CACHE_DIR = ""

    cfg.INPUT.CELL = CN()
    # What the image files hold: "RGB", or "BGR" where red and blue are swapped in the file.
    cfg.INPUT.CELL.CHANNEL_ORDER = "RGB"
    # Images and masks of more pixels than this are refused.
    cfg.INPUT.CELL.MAX_PIXELS = 100_000_000
    # [low, high] that becomes [0, 255] in images of more than 8 bits; [] for the stated range.
    cfg.INPUT.CELL.INTENSITY_RANGE = []
    # What pixels are normalised by: "config" (MODEL.PIXEL_MEAN and PIXEL_STD), or "dataset", which
    # sets those two to the training images' own when training starts and saves them with the run.
    cfg.INPUT.CELL.NORMALIZATION = "config"
    # Images are enlarged by this before the model sees them, after the crop in training; answers
    # stay in the image's own pixels. For cells that are small beside the finest stride of 4.
    cfg.INPUT.CELL.SCALE = 1.0
    # Augmentation recipe by name (cellseg_d2/data/augmentation/recipes.py).
    cfg.INPUT.CELL.RECIPE = "dihedral"

    # Cells of rare classes pasted into other images (cellseg_d2/data/augmentation/copy_paste.py).
    cfg.INPUT.CELL.COPY_PASTE = CN()
    # Classes to paste, by category (from 0) or by name; [] pastes nothing.
    cfg.INPUT.CELL.COPY_PASTE.CLASSES = []
    # At most so many cells are pasted into an image.
    cfg.INPUT.CELL.COPY_PASTE.MAX_CELLS = 3
    # Largest share of another cell that pasted cells may cover.
    cfg.INPUT.CELL.COPY_PASTE.MAX_COVER = 0.2
    # Probability with which anything is pasted into an image.
    cfg.INPUT.CELL.COPY_PASTE.PROB = 0.5

    # Features in the memory format torch.channels_last, which convolutions compute faster in.
    cfg.MODEL.CHANNELS_LAST = False

    cfg.MODEL.CBAM = CN()
    # ResNet stages that a CBAM follows (Woo et al. 2018), of res2, res3, res4, res5.
    cfg.MODEL.CBAM.STAGES = ["res2", "res3", "res4", "res5"]
    # Channels of a stage over those of its channel attention's hidden layer.
    cfg.MODEL.CBAM.REDUCTION = 16
    # Side of the spatial attention's convolution.
    cfg.MODEL.CBAM.KERNEL_SIZE = 7

    cfg.MODEL.CONVNEXT = CN()
    # "tiny", "small", "base" or "large" (Liu et al. 2022), or "pico" (Woo et al. 2023).
    cfg.MODEL.CONVNEXT.SIZE = "base"
    # Stages whose features are given out.
    cfg.MODEL.CONVNEXT.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Probability with which the last block is skipped in training; the paper's for the size if < 0.
    cfg.MODEL.CONVNEXT.STOCHASTIC_DEPTH = -1.0
    # Compute a block's activations again in the backward pass instead of keeping them.
    cfg.MODEL.CONVNEXT.GRADIENT_CHECKPOINTING = False

    # Weight of each class in the box head's classification loss, where background has 1
    # (cellseg_d2/modeling/class_weights.py); [] for 1 each.
    cfg.MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS = []
    # Loss of the mask head, PointRend's too: "bce", "dice", "bce_dice" or "tversky".
    cfg.MODEL.ROI_MASK_HEAD.LOSS = "bce"
    # Weights of BCE and Dice in "bce_dice".
    cfg.MODEL.ROI_MASK_HEAD.LOSS_WEIGHTS = [1.0, 1.0]
    # What "tversky" makes of false positives (alpha) and false negatives (beta).
    cfg.MODEL.ROI_MASK_HEAD.TVERSKY_ALPHA = 0.5
    cfg.MODEL.ROI_MASK_HEAD.TVERSKY_BETA = 0.5

    # Two auxiliary heads that predict centres and boundaries of cells; used in training only.
    cfg.MODEL.CENTER_BOUNDARY_HEAD = CN()
    cfg.MODEL.CENTER_BOUNDARY_HEAD.ENABLED = False
    # Backbone feature they read.
    cfg.MODEL.CENTER_BOUNDARY_HEAD.IN_FEATURE = "p2"
    # Channels of their hidden layer.
    cfg.MODEL.CENTER_BOUNDARY_HEAD.CONV_DIM = 256
    # Standard deviation of a centre's Gaussian, in pixels.
    cfg.MODEL.CENTER_BOUNDARY_HEAD.CENTER_SIGMA = 5.0
    # Weights of the two losses.
    cfg.MODEL.CENTER_BOUNDARY_HEAD.CENTER_WEIGHT = 0.5
    cfg.MODEL.CENTER_BOUNDARY_HEAD.BOUNDARY_WEIGHT = 0.5

    cfg.TEST.AMP = CN()
    # Mixed precision at test time, in evaluation and prediction, in SOLVER.AMP.DTYPE.
    cfg.TEST.AMP.ENABLED = False
    cfg.TEST.SOFT_NMS = CN()
    # Lower the scores of overlapping boxes instead of dropping them: "", "linear" (from an IoU of
    # MODEL.ROI_HEADS.NMS_THRESH_TEST on) or "gaussian".
    cfg.TEST.SOFT_NMS.METHOD = ""
    # Width of the Gaussian.
    cfg.TEST.SOFT_NMS.SIGMA = 0.5
    cfg.TEST.MASK_NMS = CN()
    # IoU of masks of one class above which the lower score is dropped; 1 keeps all.
    cfg.TEST.MASK_NMS.THRESHOLD = 1.0
    # Exponents of two more factors of a score (cellseg_d2/modeling/rescoring.py), 0 for none: the
    # proposal's objectness, in [0, 1), the class's share being the rest; the mask's certainty.
    cfg.TEST.RESCORE = CN()
    cfg.TEST.RESCORE.OBJECTNESS = 0.0
    cfg.TEST.RESCORE.MASK = 0.0

    # Prediction in overlapping tiles (cellseg_d2/inference/tiling.py).
    cfg.TEST.TILE = CN()
    # Side of a tile in pixels; 0 predicts whole images. Images no larger than a tile stay whole.
    cfg.TEST.TILE.SIZE = 0
    # Pixels that neighbouring tiles share: at least the extent of the largest cell.
    cfg.TEST.TILE.OVERLAP = 128

    # Test-time augmentation (cellseg_d2/inference/tta.py).
    cfg.TEST.TTA = CN()
    cfg.TEST.TTA.ENABLED = False
    # Of the square's eight symmetries: "none", "rot90", "rot180", "rot270", and "hflip", "vflip",
    # "transpose", "antitranspose".
    cfg.TEST.TTA.TRANSFORMS = ["none", "hflip", "vflip", "rot180"]
    # The image's side over its own, for each of which all transforms are run.
    cfg.TEST.TTA.SCALES = [1.0]
    # How several answers (of augmentation or of an ensemble) become one, cellseg_d2/inference/
    # fusion.py: "fusion" (weighted boxes and masks) or "nms" (masks of one class).
    cfg.TEST.MERGE = CN()
    cfg.TEST.MERGE.METHOD = "fusion"
    # IoU from which two answers are the same cell.
    cfg.TEST.MERGE.THRESHOLD = 0.5

    # Panoptic quality, AJI, Dice, F_d and F_c beside COCO's AP (cellseg_d2/evaluation/).
    cfg.TEST.PANOPTIC = CN()
    cfg.TEST.PANOPTIC.ENABLED = True
    # Predictions of a lower score are not part of the label map that these are measured on.
    cfg.TEST.PANOPTIC.SCORE_THRESHOLD = 0.5

    # Score that is kept at its highest in model_best.pth, as <task>/<score>; "" keeps none.
    cfg.TEST.BEST_METRIC = "segm/AP50"
    # Stop when BEST_METRIC has not risen by more than MIN_GAIN for PATIENCE evaluations; 0 never.
    cfg.TEST.EARLY_STOPPING = CN()
    cfg.TEST.EARLY_STOPPING.PATIENCE = 0
    cfg.TEST.EARLY_STOPPING.MIN_GAIN = 0.0
    # Losses on the first so many images of each data set of DATASETS.TEST at each evaluation, not
    # augmented; 0 for none.
    cfg.TEST.LOSS_IMAGES = 50
    # Training images, drawn once by seed, that are evaluated as well; 0 for none.
    cfg.TEST.TRAIN_IMAGES = 0

    # Learning rate of a ConvNeXt layer (three blocks, cellseg_d2/engine/layer_decay.py) over that
    # of the next one; 1 is the same for all.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # "SGD", "Adam" or "AdamW".
    cfg.SOLVER.OPTIMIZER = "AdamW"
    # Adam's and AdamW's decay rates of the two moments.
    cfg.SOLVER.BETAS = [0.9, 0.999]
    # Epochs of training; 0 counts in iterations (SOLVER.MAX_ITER) instead.
    cfg.SOLVER.MAX_EPOCHS = 0
    # With MAX_EPOCHS: epochs between checkpoints; 0 writes the last one only.
    cfg.SOLVER.CHECKPOINT_EPOCHS = 1
    # Checkpoints kept beside model_best.pth and model_final.pth, the newest; 0 keeps all.
    cfg.SOLVER.KEEP_CHECKPOINTS = 3
    # Batches whose gradients are added up for one update; an iteration is one update.
    cfg.SOLVER.ACCUMULATE = 1
    # What AMP computes in: "float16", on CUDA only, or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Compile the backbone with torch.compile.
    cfg.SOLVER.COMPILE = False
    # Exponential moving average of the weights, evaluated and saved beside the raw ones.
    cfg.SOLVER.EMA = CN()
    cfg.SOLVER.EMA.ENABLED = False
    # Share of the average that an iteration keeps; lower in the first iterations.
    cfg.SOLVER.EMA.DECAY = 0.999
    # Learning rate at which "WarmupCosineLR" ends.
    cfg.SOLVER.MIN_LR = 0.0
    # With MAX_EPOCHS: epochs between evaluations; 0 evaluates once, at the end.
    cfg.TEST.EVAL_EPOCHS = 1

    # Upstream keys. Crops of label maps, boxes from masks and instances' order of position make
    # these the only values the mapper and loader can honour.
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    # Total-norm clipping; upstream's "value" and "norm" work on each parameter by itself.
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.MODEL.META_ARCHITECTURE = "CellRCNN"
    # Upstream's RPN, which matches hundreds of cells with their anchors in less time and memory.
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "CellRPN"
    # Upstream's -1 draws a seed anew each time, and a run could not be resumed exactly.
    cfg.SEED = 0
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(cfg.DATASETS.CELL.CLASS_NAMES)


def load_config(config_file: str | PathLike[str] | None = None, options: Sequence[str] = ()) -> CN:
    """Load a config file over the defaults, then ``KEY VALUE`` options over that.

    A config is data: YAML tags that would build Python objects are refused.

    Args:
        config_file: a YAML file; its ``_BASE_`` is followed.
        options: keys and values in turn.

    Returns:
        The config, complete and consistent, not frozen.

    Raises:
        ConfigError: for a file that is missing or no plain YAML, a key that does not exist, a value
            of another type, or values that do not fit each other.
    """
    cfg = get_cfg()
    add_cellseg_config(cfg)
    without_value = set(_keys_without_value(cfg))
    if config_file:
        path = fspath(config_file)
        check_bases(Path(path))
        try:
            cfg.merge_from_file(path, allow_unsafe=False)
        except _MERGE_ERRORS as error:
            raise ConfigError(f"{path}: {error}") from error
    if len(options) % 2:
        raise ConfigError(f"options come as KEY VALUE pairs, not {' '.join(map(str, options))}")
    for key, value in zip(options[::2], options[1::2], strict=True):
        _set_option(cfg, str(key), value)
    for key in _keys_without_value(cfg):  # yacs takes null for a value of any type
        if key not in without_value:
            raise ConfigError(f"{config_file or 'options'}: {key} has no value")
    try:
        complete_config(cfg)
    except (AttributeError, TypeError) as error:  # yacs takes lists of anything
        raise ConfigError(
            f"{config_file or 'options'}: a value of another type: {error}"
        ) from error
    if cfg.SOLVER.MAX_EPOCHS > 0:
        for key in _COUNTED_IN_ITERATIONS:
            if key in options[::2]:
                raise ConfigError(
                    f"{key} has no effect while SOLVER.MAX_EPOCHS is {cfg.SOLVER.MAX_EPOCHS}: set "
                    f"{_COUNTED_IN_ITERATIONS[key]}, or add SOLVER.MAX_EPOCHS 0 to count iterations"
                )
    return cfg


def _keys_without_value(node: CN, above: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CN):
            yield from _keys_without_value(value, f"{above}{key}.")
        elif value is None:
            yield f"{above}{key}"


def _set_option(cfg: CN, key: str, value: Any) -> None:
    """Set one key; a whole number will do where a fraction may stand."""
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part) if isinstance(node, CN) else None
    if isinstance(node, float):
        with contextlib.suppress(TypeError, ValueError):
            value = float(value)
    try:
        cfg.merge_from_list([key, value])
    except _MERGE_ERRORS as error:
        raise ConfigError(f"option {key} {value}: {error}") from error


_COUNTED_IN_ITERATIONS = {
    "SOLVER.MAX_ITER": "SOLVER.MAX_EPOCHS",
    "SOLVER.CHECKPOINT_PERIOD": "SOLVER.CHECKPOINT_EPOCHS",
    "TEST.EVAL_PERIOD": "TEST.EVAL_EPOCHS",
}


def require_fixed_normalization(cfg: CN) -> None:
    """Refuse to predict with a config whose normalisation only training settles.

    Raises:
        ConfigError: where ``INPUT.CELL.NORMALIZATION`` is "dataset".
    """
    if cfg.INPUT.CELL.NORMALIZATION == "dataset":
        raise ConfigError(
            "INPUT.CELL.NORMALIZATION is dataset: the mean and standard deviation that the model "
            "was trained with are in its run's config.yaml; give that file as the config"
        )


def complete_config(cfg: CN) -> None:
    """Check that the values fit each other, and settle those that depend on others or the machine.

    One number caps the detections of an image, ``TEST.DETECTIONS_PER_IMAGE``: the proposals kept at
    test time are raised to it here, and the evaluator takes it from there.

    Args:
        cfg: changed in place.

    Raises:
        ConfigError: for values that do not fit each other; the message names the keys.
    """
    names, classes = cfg.DATASETS.CELL.CLASS_NAMES, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if len(names) != classes:
        raise ConfigError(
            f"DATASETS.CELL.CLASS_NAMES names {len(names)} classes ({', '.join(names)}), "
            f"MODEL.ROI_HEADS.NUM_CLASSES is {classes}; make them equal"
        )
    cfg.MODEL.POINT_HEAD.NUM_CLASSES = classes
    if cfg.INPUT.CELL.CHANNEL_ORDER not in ("RGB", "BGR"):
        raise ConfigError(
            f"INPUT.CELL.CHANNEL_ORDER is {cfg.INPUT.CELL.CHANNEL_ORDER!r}; it is RGB or BGR"
        )
    if cfg.INPUT.CELL.NORMALIZATION not in ("config", "dataset"):
        raise ConfigError(
            f"INPUT.CELL.NORMALIZATION is {cfg.INPUT.CELL.NORMALIZATION!r}; it is config or dataset"
        )
    check_ranges(cfg)
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise ConfigError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; it is RGB or BGR")
    if not cfg.MODEL.WEIGHTS:
        _train_from_scratch(cfg)
    cap = cfg.TEST.DETECTIONS_PER_IMAGE
    if cfg.MODEL.RPN.POST_NMS_TOPK_TEST < cap:
        logger.info("MODEL.RPN.POST_NMS_TOPK_TEST raised to TEST.DETECTIONS_PER_IMAGE, %d", cap)
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cap
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = max(cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, cap)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s and CUDA is not available: using cpu", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"


def _train_from_scratch(cfg: CN) -> None:
    """Let a backbone without pretrained weights train: no frozen norms, no frozen stages.

    A frozen BatchNorm is an identity until statistics are loaded, and a frozen stage stays random.
    GroupNorm takes its place, not BatchNorm: the statistics of a batch of two images vary too much
    (Wu and He 2018, "Group Normalization"), and GroupNorm is what detectors were trained from
    scratch with (He, Girshick, Dollár 2019, "Rethinking ImageNet Pre-training").
    """
    resnets, backbone = cfg.MODEL.RESNETS, cfg.MODEL.BACKBONE
    changes = []
    if resnets.NORM == "FrozenBN" and "resnet" in backbone.NAME:
        resnets.NORM = "GN"
        changes.append("MODEL.RESNETS.NORM GN instead of FrozenBN")
    if backbone.FREEZE_AT > 0:
        changes.append(f"MODEL.BACKBONE.FREEZE_AT 0 instead of {backbone.FREEZE_AT}")
        backbone.FREEZE_AT = 0
    if changes:
        logger.warning('MODEL.WEIGHTS is "": training from scratch, with %s', ", ".join(changes))
