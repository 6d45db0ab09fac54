"""Headers as the programs that write them do, each stating a quarter of a micrometre."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from cellseg_d2 import CellDataError
from cellseg_d2.export.pixel_size import read_pixel_size

IMAGE = np.zeros((8, 9, 3), np.uint8)


def write(path: Path, **options: Any) -> Path:
    tifffile.imwrite(path, IMAGE, photometric="rgb", **options)
    return path


def ome(**attributes: str) -> str:
    text = " ".join(f'{key}="{value}"' for key, value in attributes.items())
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" {text}/></Image></OME>'
    )


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"},
        {"resolution": (101_600, 101_600), "resolutionunit": "INCH"},
        {"resolution": (4, 4), "description": "ImageJ=1.54f\nunit=micron\n"},
        {"resolution": (4, 4), "description": "ImageJ=1.54f\nunit=\\u00B5m\n"},
        {"resolution": (4000, 4000), "description": "ImageJ=1.54f\nunit=mm\nloop=false\n"},
        {"description": "Aperio Image Library v12.0.15\r\n8x9 |AppMag = 40|MPP = 0.2500|Top = 1"},
        {"description": ome(PhysicalSizeX="0.25", PhysicalSizeY="0.25")},
        {
            "description": ome(
                **{"PhysicalSizeX": "250", "PhysicalSizeXUnit": "nm"},
                **{"PhysicalSizeY": "0.00025", "PhysicalSizeYUnit": "mm"},
            ),
            # OME says more than the tags.
            "resolution": (300, 300),
            "resolutionunit": "INCH",
        },
    ],
)
def test_a_quarter_of_a_micrometre(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write(tmp_path / "image.tif", metadata=None, **options)
    assert read_pixel_size(path) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resolution": (72, 72), "resolutionunit": "INCH"},
        {"resolution": (600, 600), "resolutionunit": "INCH"},
        {"resolution": (4800, 4800), "resolutionunit": "INCH"},
        {"resolution": (236, 236), "resolutionunit": "CENTIMETER"},
        {"resolution": (600, 600), "description": "ImageJ=1.54f\nunit=inch\n"},
        {"resolution": (600, 600), "resolutionunit": "INCH", "description": "ImageJ=1.54f\n"},
        {"resolution": (4, 4), "resolutionunit": "NONE"},
        {"resolution": (4, 4), "description": "ImageJ=1.54f\nunit=pixel\n"},
        {"description": ome(SizeX="9")},
        {"description": ome(PhysicalSizeX="0.25", PhysicalSizeY="0.25", PhysicalSizeXUnit="pixel")},
        {"description": "Aperio |MPP = 1.2.3|"},
        {"extratags": [(282, "f", 1, 40_000.0, True), (283, "f", 1, 40_000.0, True)]},
        {"extratags": [(282, "2I", 1, (0, 0), True), (283, "2I", 1, (0, 0), True)]},
    ],
)
def test_no_size_or_one_for_print(tmp_path: Path, options: dict[str, Any]) -> None:
    assert read_pixel_size(write(tmp_path / "image.tif", metadata=None, **options)) is None


def test_a_large_pixel_where_the_unit_is_none_for_print(tmp_path: Path) -> None:
    options = {"resolution": (50, 50), "description": "ImageJ=1.54f\nunit=mm\n"}
    assert read_pixel_size(write(tmp_path / "image.tif", metadata=None, **options)) == 20


def test_pixels_that_are_not_square(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resolution = {"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}
    assert read_pixel_size(write(tmp_path / "image.tif", **resolution)) is None
    assert "0.25×0.5 µm are not square" in caplog.text


def test_tifffiles_own_ome_and_imagej_files(tmp_path: Path) -> None:
    metadata = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25, "axes": "YXS"}
    path = write(tmp_path / "a.ome.tif", ome=True, metadata=metadata)
    assert read_pixel_size(path) == pytest.approx(0.25)
    path = write(tmp_path / "b.tif", imagej=True, resolution=(4, 4), metadata={"unit": "um"})
    assert read_pixel_size(path) == pytest.approx(0.25)


def test_a_file_that_is_no_tiff(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    path.write_bytes(b"no TIFF at all, for sure")
    with pytest.raises(CellDataError, match="no TIFF"):
        read_pixel_size(path)
    path = write(tmp_path / "b.tif", description="<OME <broken", metadata=None)
    with pytest.raises(CellDataError):
        read_pixel_size(path)
