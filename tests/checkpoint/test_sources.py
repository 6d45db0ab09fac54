"""Missing weights: what the error tells to do about each file that the configs name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torchvision.models as zoo
import yaml

from cellseg_d2 import CellDataError
from cellseg_d2.checkpoint import check_weights
from cellseg_d2.checkpoint.sources import MODEL_ZOO, TORCHVISION, TORCHVISION_FOLDER


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("R-50-torchvision.pkl", zoo.ResNet50_Weights.IMAGENET1K_V1),
        ("X-101-64x4d-torchvision.pkl", zoo.ResNeXt101_64X4D_Weights.IMAGENET1K_V1),
        ("ConvNeXt-B-torchvision.pkl", zoo.ConvNeXt_Base_Weights.IMAGENET1K_V1),
    ],
)
def test_addresses_are_those_that_torchvision_states(name: str, weights, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(CellDataError) as error:
        check_weights(str(path))
    source = weights.url.rpartition("/")[2]
    message = str(error.value)
    assert f"{path}: found no such file" in message
    assert weights.url in message
    command = f"tools/convert_weights.py --input {source} --output {path}"
    assert command in message
    assert 'from scratch with MODEL.WEIGHTS ""' in message


def test_the_model_zoos_file_and_unknown_files() -> None:
    with pytest.raises(CellDataError, match=r"dl\.fbaipublicfiles\.com.*MSRA/R-50\.pkl.*scratch"):
        check_weights("weights/R-50.pkl")
    with pytest.raises(
        CellDataError, match=r"out/model\.pth: found no such.*put the file.*scratch"
    ):
        check_weights("out/model.pth")


def test_files_that_are_there_addresses_and_none(tmp_path: Path) -> None:
    (tmp_path / "R-50.pkl").touch()
    check_weights(str(tmp_path / "R-50.pkl"))
    check_weights("https://example.org/R-50.pkl")
    check_weights("")


def test_the_source_of_every_file_that_a_config_names_is_known(repository: Path) -> None:
    named = set()
    for path in (repository / "configs").glob("*.yaml"):
        weights = yaml.safe_load(path.read_text()).get("MODEL", {}).get("WEIGHTS")
        if weights:
            assert weights.startswith("weights/"), path
            named.add(weights.removeprefix("weights/"))
    assert named and named <= MODEL_ZOO.keys() | TORCHVISION.keys()
    assert TORCHVISION_FOLDER.startswith("https://")
