import matplotlib
import numpy as np
import pytest

from cellseg_d2.data.inspection import ImageFigures, Inspection, LayerFigures
from cellseg_d2.visualization.dataset_figure import draw_inspection

COLORS = ((230, 60, 60), (60, 140, 255))


def image(name, size, *areas):
    layers = {k: LayerFigures(np.array(values), 0, 0, 0) for k, values in enumerate(areas)}
    return ImageFigures(name, *size, layers, 0, np.zeros((3, 256), np.int64))


def draw(tmp_path, images, test_sizes=()):
    path = tmp_path / "figure.png"
    inspection = Inspection("root", 2, images, list(test_sizes))
    draw_inspection(inspection, path, class_names=("class1", "class2"), class_colors=COLORS)
    return np.round(matplotlib.image.imread(path)[..., :3] * 255).astype(int)


def area_of(picture, color):
    return (picture == color).all(axis=2).sum()


def test_bars_have_the_colors_of_the_classes(tmp_path):
    picture = draw(tmp_path, [image("a", (50, 60), [100] * 30, [200] * 10)], [(40, 40), (9, 9)])
    assert picture.shape == (1350, 1950, 3)
    # Nearly all of the colour is in the bars, 30 to 10 in two panels.
    assert area_of(picture, COLORS[0]) == pytest.approx(3 * area_of(picture, COLORS[1]), rel=0.15)


@pytest.mark.parametrize(
    "images",
    [
        [image("a", (50, 60))],
        [image("a", (50, 60), [], [])],
        [image("a", (1, 1), [1])],
        [image("x" * 200, (2500, 2000), [4_000_000], [1])],
        [image(f"n{k}", (33 + k, 35 + 2 * k), [k + 1] * k, [9] * 3) for k in range(100)],
    ],
    ids=["no classes", "no instances", "one pixel", "extremes", "many"],
)
def test_odd_data_sets(tmp_path, images):
    picture = draw(tmp_path, images)
    assert picture.shape == (1350, 1950, 3)
    assert (picture != 255).any(axis=2).mean() > 0.01


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no sound annotated image"):
        draw(tmp_path, [])
