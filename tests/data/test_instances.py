import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.structures import BitMasks
from pycocotools import mask as coco_mask
from scipy import ndimage
from skimage.measure import label

from cellseg_d2.data.instances import check_rule, label_components, read_instances
from cellseg_d2.data.layout import scan_root
from cellseg_d2.errors import CellDataError


def blobs(rng, size, sigma):
    """A label map of touching cells, some in several parts, with ids that have gaps."""
    noise = ndimage.gaussian_filter(rng.random(size), sigma)
    cells, _ = ndimage.label(noise > np.quantile(noise, 0.6))
    split = cells * 2 + (ndimage.gaussian_filter(rng.random(size), sigma) > 0.5)
    return np.where(cells > 0, split, 0).astype(np.int32)


def write(root, name, size, label_maps):
    folder = root / name
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "image.tif", np.zeros((*size, 3), np.uint8), photometric="rgb")
    for category, label_map in label_maps.items():
        tifffile.imwrite(folder / f"class{category + 1}.tif", label_map.astype(np.uint16))
    return scan_root(root).folders[0]


class TestLabelComponents:
    @pytest.mark.parametrize("threads", [1, 4])
    def test_against_skimage(self, threads):
        rng = np.random.default_rng(0)
        before = cv2.getNumThreads()
        cv2.setNumThreads(threads)
        try:
            for sigma in (0, 0.5, 1, 3):
                for size in ((1, 1), (1, 50), (50, 1), (33, 35), (200, 301)):
                    label_map = blobs(rng, size, sigma)
                    got = label_components(label_map)
                    assert got.dtype == np.int32
                    np.testing.assert_array_equal(got, label(label_map > 0))
        finally:
            cv2.setNumThreads(before)

    def test_hand_worked(self):
        label_map = np.array([[7, 0, 0, 1], [0, 7, 0, 1], [0, 0, 0, 0], [7, 8, 0, 1]])
        expected = [[1, 0, 0, 2], [0, 1, 0, 2], [0, 0, 0, 0], [3, 3, 0, 4]]
        np.testing.assert_array_equal(label_components(label_map), expected)

    def test_empty_and_odd_inputs(self):
        assert label_components(np.zeros((0, 4), np.int32)).shape == (0, 4)
        assert label_components(np.zeros((3, 4), np.int32)).max() == 0
        strided = np.ones((6, 8), np.uint16)[::2, ::-2]
        np.testing.assert_array_equal(label_components(strided), np.ones((3, 4)))


@pytest.mark.parametrize("rule", ["ids", "components"])
@pytest.mark.parametrize("min_area", [1, 12])
def test_read_instances_against_one_mask_per_id(tmp_path, rule, min_area):
    rng = np.random.default_rng(1)
    size = (60, 83)
    label_maps = {0: blobs(rng, size, 2), 3: blobs(rng, size, 1), 1: np.zeros(size, int)}
    got = read_instances(write(tmp_path, "a", size, label_maps), rule, min_area)
    assert (got.height, got.width) == size
    assert [layer.category for layer in got.layers] == [0, 1, 3]
    for layer in got.layers:
        label_map = label_maps[layer.category]
        label_map = label(label_map > 0) if rule == "components" else label_map
        all_ids = [value for value in np.unique(label_map) if value]
        ids = [value for value in all_ids if (label_map == value).sum() >= min_area]
        masks = np.zeros((len(ids), *size), bool)
        for mask, value in zip(masks, ids, strict=True):
            mask[:] = label_map == value
        assert layer.ids.tolist() == ids and layer.ids.dtype == np.int32
        assert layer.num_dropped == len(all_ids) - len(ids)
        boxes = BitMasks(torch.from_numpy(masks)).get_bounding_boxes().tensor.numpy()
        np.testing.assert_array_equal(layer.boxes, boxes)
        assert layer.areas.tolist() == masks.sum((1, 2)).tolist()
        encoded = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
        assert layer.counts == [rle["counts"] for rle in encoded]


def test_faults(tmp_path):
    size = (20, 30)
    good = np.eye(20, 30, dtype=int)
    with pytest.raises(CellDataError, match="600 pixels.*at most 599"):
        read_instances(write(tmp_path / "x", "a", size, {}), max_pixels=599)
    folder = write(tmp_path / "y", "a", size, {0: good, 1: good.T})
    with pytest.raises(CellDataError, match="class2.tif"):
        read_instances(folder)
    folder.image_file.write_bytes(b"II*\0")
    with pytest.raises(CellDataError, match="image.tif"):
        read_instances(folder)


def test_check_rule():
    check_rule("ids", 1)
    with pytest.raises(ValueError, match="instances must be one of"):
        check_rule("semantic", 1)
    with pytest.raises(ValueError, match="min_area"):
        check_rule("ids", 0)
