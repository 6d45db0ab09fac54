import numpy as np
import pytest
import tifffile
from scipy import ndimage

from cellseg_d2.data.inspection import channel_statistics, inspect_dataset
from cellseg_d2.errors import CellDataError

SIZE = (20, 24)


def write(folder, label_maps, image=None):
    folder.mkdir(parents=True)
    image = np.zeros((*SIZE, 3), np.uint8) if image is None else image
    tifffile.imwrite(folder / "image.tif", image, photometric="rgb")
    for number, label_map in label_maps.items():
        tifffile.imwrite(folder / f"class{number}.tif", np.asarray(label_map, np.uint16))


def rectangles(*boxes):
    array = np.zeros(SIZE, np.int32)
    for value, y0, y1, x0, x1 in boxes:
        array[y0:y1, x0:x1] = value
    return array


def test_hand_worked(tmp_path):
    # Class 1: 1 is alone; 2 touches 3 by a corner. Class 2: 4 overlaps 3 by 2 × 1 pixels; 5 is
    # in two parts, one beside the border of class 1's 1 with a gap of a pixel.
    write(
        tmp_path / "a",
        {
            1: rectangles((1, 0, 3, 0, 3), (2, 10, 12, 0, 2), (3, 12, 15, 2, 5)),
            2: rectangles((4, 13, 15, 4, 8), (5, 0, 3, 4, 6), (5, 18, 20, 20, 24)),
        },
    )
    write(tmp_path / "b", {})
    inspection = inspect_dataset(tmp_path)
    a, b = inspection.images
    assert (a.name, a.height, a.width, a.overlap) == ("a", *SIZE, 2)
    assert a.layers[0].areas.tolist() == [9, 4, 9] and a.layers[1].areas.tolist() == [8, 14]
    assert (a.layers[0].num_touching, a.layers[1].num_touching) == (2, 1)
    assert (a.layers[0].num_split, a.layers[1].num_split) == (0, 1)
    assert b.layers == {} and b.overlap == 0
    assert not inspection.faults and not inspection.test_sizes


def test_touching_against_dilation_of_each_instance(tmp_path):
    rng = np.random.default_rng(2)
    label_maps = {}
    for number in (1, 2, 4):
        noise = ndimage.gaussian_filter(rng.random(SIZE), 1)
        label_maps[number] = ndimage.label(noise > np.quantile(noise, 0.8))[0]
        label_maps[number][label_maps[number] > 0] *= 3
        label_maps[number][::3][label_maps[number][::3] > 0] += 1
    write(tmp_path / "a", label_maps)
    (image,) = inspect_dataset(tmp_path).images
    masks = {
        (number - 1, value): label_map == value
        for number, label_map in label_maps.items()
        for value in np.unique(label_map)[1:]
    }
    square = np.ones((3, 3))
    expected = dict.fromkeys(image.layers, 0)
    for key, mask in masks.items():
        near = ndimage.binary_dilation(mask, square)
        expected[key[0]] += any((near & other).any() for k, other in masks.items() if k != key)
    assert {k: layer.num_touching for k, layer in image.layers.items()} == expected
    assert 0 < sum(expected.values()) < len(masks)
    depth = sum((label_map > 0).astype(int) for label_map in label_maps.values())
    assert image.overlap == (depth > 1).sum() > 0
    split = {k: 0 for k in image.layers}
    for (category, _), mask in masks.items():
        split[category] += ndimage.label(mask, square)[1] > 1
    assert {k: layer.num_split for k, layer in image.layers.items()} == split


def test_rule_and_min_area(tmp_path):
    write(tmp_path / "a", {1: rectangles((1, 0, 3, 0, 3), (2, 3, 4, 0, 1), (1, 9, 10, 9, 10))})
    (image,) = inspect_dataset(tmp_path, min_area=2).images
    assert (image.layers[0].num_dropped, image.layers[0].num_touching) == (1, 0)
    (image,) = inspect_dataset(tmp_path, "components").images
    assert image.layers[0].areas.tolist() == [10, 1] and image.layers[0].num_split == 0
    with pytest.raises(ValueError):
        inspect_dataset(tmp_path, min_area=0)


def test_channel_statistics(tmp_path):
    rng = np.random.default_rng(3)
    images = [rng.integers(0, high, (*SIZE, 3), dtype=np.uint8) for high in (256, 90)]
    for name, image in zip("ab", images, strict=True):
        write(tmp_path / name, {}, image)
    for order, view in (("RGB", slice(None)), ("BGR", slice(None, None, -1))):
        figures = inspect_dataset(tmp_path, channel_order=order).images
        mean, std = channel_statistics(sum(image.histogram for image in figures))
        pixels = np.stack(images)[..., view].reshape(-1, 3)
        np.testing.assert_allclose(mean, pixels.mean(0))
        np.testing.assert_allclose(std, pixels.std(0))
    assert np.isnan(channel_statistics(np.zeros((3, 256)))[0]).all()


def test_every_fault_is_found(tmp_path):
    write(tmp_path / "train/good", {1: rectangles((1, 0, 3, 0, 3))})
    write(tmp_path / "train/two", {1: np.zeros((3, 3)), 2: np.zeros((4, 4)), 3: rectangles()})
    write(tmp_path / "train/image", {1: rectangles()})
    # A whole header and half of the pixels: reading the size alone does not show it.
    image = tmp_path / "train/image/image.tif"
    image.write_bytes(image.read_bytes()[:-600])
    write(tmp_path / "train/extra", {5: rectangles()})
    (tmp_path / "train/notes").mkdir()
    (tmp_path / "test_release").mkdir()
    tifffile.imwrite(tmp_path / "test_release/x.tif", np.zeros((5, 6), np.uint8))
    (tmp_path / "test_release/y.tif").write_bytes(b"")
    inspection = inspect_dataset(tmp_path)
    assert [image.name for image in inspection.images] == ["good"]
    assert sorted(fault.path.removeprefix(str(tmp_path)) for fault in inspection.faults) == [
        "/test_release/y.tif",
        "/train/extra/class5.tif",
        "/train/image/image.tif",
        "/train/two/class1.tif",
        "/train/two/class2.tif",
    ]
    assert inspection.test_sizes == [(5, 6)]
    assert inspection.ignored == [tmp_path / "train/notes"]


def test_roots_without_annotated_images(tmp_path):
    with pytest.raises(CellDataError, match="no image folder"):
        inspect_dataset(tmp_path)
    (tmp_path / "test_release").mkdir()
    assert [fault.path for fault in inspect_dataset(tmp_path).faults] == [
        str(tmp_path / "test_release")
    ]
    tifffile.imwrite(tmp_path / "test_release/x.tif", np.zeros((5, 6), np.uint8))
    assert inspect_dataset(tmp_path).faults == []
    (tmp_path / "train").mkdir()
    (fault,) = inspect_dataset(tmp_path).faults
    assert "no image folder" in fault.found
    (tmp_path / "test_image_name_to_ids.json").write_text("{}")
    assert "a JSON dict" in inspect_dataset(tmp_path).faults[1].found


def test_real_data(real_data):
    (image,) = inspect_dataset(real_data / "layout_sample", channel_order="BGR").images
    assert {k: len(layer.areas) for k, layer in image.layers.items()} == {0: 2, 1: 159}
    red, _, blue = channel_statistics(image.histogram)[0]
    assert blue > red  # the tissue is purple; brown if the channels were not swapped
