"""Oracles: the masks, by point-in-polygon and the shoelace formula; an object as QuPath has it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from cellseg_d2.export.cells import iter_cells
from cellseg_d2.export.geojson import cell_geometry, open_geojson
from cellseg_d2.visualization.colors import CLASS_PALETTE

from .answers import discs, make_instances

SIZE = (40, 50)
NAMES = ["epithelial", "lymphocyte", "Makrophage, groß", "other"]


def write(path: Path, *parts) -> dict:
    with open_geojson(path, NAMES) as writer:
        first_id = 1
        for part in parts:
            writer.add(part, first_id)
            first_id += len(part)
    return json.loads(path.read_text())


def rasterise(geometry: dict, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres lie in a geometry, as any reader of GeoJSON sees them."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    centers = np.stack([x.ravel(), y.ravel()], axis=1)
    coordinates = geometry["coordinates"]
    mask = np.zeros(size, bool)
    for outer, *holes in coordinates if geometry["type"] == "MultiPolygon" else [coordinates]:
        inside = Outline(outer).contains_points(centers)
        for hole in holes:
            inside &= ~Outline(hole).contains_points(centers)
        mask |= inside.reshape(size)
    return mask


def test_what_qupath_reads(tmp_path: Path) -> None:
    mask = np.zeros(SIZE)
    mask[10:13, 20:25] = 1
    collection = write(tmp_path / "new" / "a.geojson", make_instances([mask], [0.75], [2], SIZE))
    (ring,) = collection["features"][0]["geometry"]["coordinates"]
    start = ring.index([20, 10])  # where a ring begins means nothing
    collection["features"][0]["geometry"]["coordinates"] = [ring[start:-1] + ring[: start + 1]]
    assert collection == {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "id": 1,
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[[20, 10], [25, 10], [25, 13], [20, 13], [20, 10]]],
                },
                "properties": {
                    "objectType": "detection",
                    "name": "1",
                    "classification": {"name": NAMES[2], "color": list(CLASS_PALETTE[2])},
                    "measurements": {"score": 0.75},
                },
            }
        ],
    }


def test_outlines_hold_the_masks_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    round_ones = discs(rng, 10, SIZE)
    noise = make_instances([rng.random(SIZE) < 0.5 for _ in range(3)], [0.9] * 3, [0] * 3, SIZE)
    features = write(tmp_path / "a.geojson", round_ones, noise)["features"]
    assert [feature["id"] for feature in features] == list(range(1, 14))
    assert {feature["geometry"]["type"] for feature in features} == {"Polygon", "MultiPolygon"}
    masks = [*round_ones.pred_masks, *noise.pred_masks]
    for feature, mask in zip(features, masks, strict=True):
        assert np.array_equal(rasterise(feature["geometry"], SIZE), mask.numpy())


def test_rings_are_closed_and_holes_come_after() -> None:
    mask = np.ones(SIZE)
    mask[5:9, 5:9] = mask[20:22, 30:33] = 0
    (cell,) = iter_cells(make_instances([mask], [0.9], [0], SIZE))
    geometry = cell_geometry(cell)
    assert geometry["type"] == "Polygon"
    areas = []
    for ring in geometry["coordinates"]:
        assert ring[0] == ring[-1]
        x, y = np.transpose(ring)
        areas.append(float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2)
    assert areas == [2000, -16, -6]


def test_no_cells_give_an_empty_collection(tmp_path: Path) -> None:
    empty = {"type": "FeatureCollection", "features": []}
    assert write(tmp_path / "a.geojson") == empty
    assert write(tmp_path / "b.geojson", make_instances([], [], [], SIZE)) == empty


def test_a_failure_on_the_way_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_geojson(tmp_path / "a.geojson", NAMES) as writer:
        writer.add(discs(np.random.default_rng(0), 3, SIZE), 1)
        raise RuntimeError("the model failed")
    assert list(tmp_path.iterdir()) == []
