import json
from pathlib import Path

import numpy as np
import pytest

from cellseg_d2.data.inspection import ImageFigures, Inspection, LayerFigures
from cellseg_d2.data.inspection_report import format_report, summarize
from cellseg_d2.errors import CellDataError


def image(name, size, overlap=0, value=100, **areas):
    """Figures of an image of one grey value; c1=[…] gives the areas of class 1."""
    histogram = np.zeros((3, 256), np.int64)
    histogram[:, value] = size[0] * size[1]
    layers = {
        int(key[1:]) - 1: LayerFigures(np.array(values, np.int64), len(values) // 2, 1, 3)
        for key, values in areas.items()
    }
    return ImageFigures(name, *size, layers, overlap, histogram)


@pytest.fixture
def inspection():
    return Inspection(
        "/data/set",
        3,
        [
            image("a", (10, 20), c1=[4, 16, 4096], c3=[100]),
            image("b", (30, 20), overlap=5, value=200, c1=[], c3=[25, 36]),
            image("c", (10, 40), value=200),
        ],
        [(7, 8), (9, 8)],
        [CellDataError("/data/set/x/class1.tif", "one", "two", "three")],
        [Path("/data/set/notes")],
    )


def test_summary(inspection):
    summary = summarize(inspection)
    assert (summary["images"], summary["instances"], summary["test_images"]) == (3, 6, 2)
    assert (summary["height"], summary["width"]) == ([10, 10, 30], [20, 20, 40])
    assert (summary["test_height"], summary["test_width"]) == ([7, 8, 9], [8, 8, 8])
    assert summary["instances_per_image"] == [0, 2, 4]
    class1, class2, class3 = summary["classes"]
    assert class1["name"] == "class1" and class1["instances"] == 3 and class1["images"] == 1
    np.testing.assert_allclose(
        class1["sqrt_area"], np.quantile([2, 4, 64], [0.05, 0.25, 0.5, 0.75, 0.95]), atol=1e-3
    )
    assert class1["share_small"] == 0.6667 and class1["share_touching"] == 0.3333
    assert class1["split_ids"] == 2 and class1["dropped"] == 6
    assert class2["instances"] == 0 and class2["sqrt_area"] is class2["share_small"] is None
    assert class3["images"] == 2 and summary["all"]["images"] == 2
    assert summary["all"]["instances"] == 6 and summary["all"]["share_touching"] == 0.3333
    assert (summary["overlap_pixels"], summary["images_with_overlap"]) == (5, 1)
    # 200 pixels of 100 and 1,000 of 200
    assert summary["channel_mean"] == [183.333] * 3
    assert summary["channel_std"] == [37.268] * 3
    b = summary["per_image"][1]
    assert b["instances"] == [0, 0, 2] and b["missing_classes"] == ["class1", "class2"]
    assert b["overlap_pixels"] == 5 and b["touching"] == 1 and b["channel_mean"] == [200.0] * 3
    assert summary["faults"] == [
        {
            "path": "/data/set/x/class1.tif",
            "found": "one",
            "expected": "two",
            "advice": "three",
        }
    ]


def test_json_holds_it(inspection):
    summary = summarize(inspection)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    empty = summarize(Inspection("r", 4))
    assert json.loads(json.dumps(empty, allow_nan=False)) == empty
    assert empty["channel_mean"] is None and empty["height"] is None


def test_report(inspection):
    lines = format_report(summarize(inspection)).splitlines()
    assert lines[2].split() == ["b", "30", "20", "0", "0", "2", "1", "2", "5", "class1", "class2"]
    assert len({len(line) for line in lines[6:10]}) == 1  # the class table is aligned
    assert lines[6].split()[:4] == ["class1", "3", "1", "2.2"]
    assert lines[7].split() == ["class2", "0", "0", *"-------", "0", "0"]
    text = "\n".join(lines)
    assert "height × width   10 / 10 / 30 × 20 / 20 / 40 px" in text
    assert "height × width   7 / 8 / 9 × 8 px" in text
    assert "RGB mean         183.33  183.33  183.33" in text
    assert "Ignored folders    1, without TIFFs\n  /data/set/notes" in text
    assert lines[-2] == "Faults             1"
    assert lines[-1] == "  /data/set/x/class1.tif: found one; expected two; three"


def test_report_of_nothing():
    assert format_report(summarize(Inspection("r", 4))).splitlines() == [
        "Root               r",
        "Annotated images   0",
        "Test images        0",
        "",
        "Faults             0",
    ]
