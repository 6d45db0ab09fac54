"""Where pretrained weights come from, for the error that says so when they are missing."""

from __future__ import annotations

from pathlib import Path

from ..errors import CellDataError

MODEL_ZOO = {
    "R-50.pkl": "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl",
}
"""Files of Detectron2's model zoo, used as they are."""

TORCHVISION = {
    "R-50-torchvision.pkl": "resnet50-0676ba61.pth",
    "X-101-64x4d-torchvision.pkl": "resnext101_64x4d-173b62eb.pth",
    "ConvNeXt-B-torchvision.pkl": "convnext_base-6075fbad.pth",
}
"""Files that ``tools/convert_weights.py`` makes, and torchvision's file (IMAGENET1K_V1) of each."""

TORCHVISION_FOLDER = "https://download.pytorch.org/models"


def check_weights(path: str, trained: bool = False) -> None:
    """Refuse a weights file that is not there, before anything is built or trained.

    Args:
        path: ``MODEL.WEIGHTS``; "" trains from scratch. A path with ``://`` is left to iopath,
            which downloads it.
        trained: whether a trained model is wanted, which nothing can stand in for.

    Raises:
        CellDataError: where there is no such file; it says where the ones that the configs name
            come from.
    """
    if path and "://" not in path and not Path(path).is_file():
        raise CellDataError(
            path,
            "no such file",
            "the weights named by MODEL.WEIGHTS",
            _how_to_get(path)
            + ("" if trained else ', or train from scratch with MODEL.WEIGHTS ""'),
        )


def _how_to_get(path: str) -> str:
    name = Path(path).name
    if name in MODEL_ZOO:
        return f"download {MODEL_ZOO[name]} to {path}"
    if name in TORCHVISION:
        source = TORCHVISION[name]
        return (
            f"download {TORCHVISION_FOLDER}/{source} and run "
            f"`python tools/convert_weights.py --input {source} --output {path}`"
        )
    return "put the file there"
