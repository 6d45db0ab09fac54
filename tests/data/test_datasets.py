import gc
import json
import logging
import time

import numpy as np
import pytest
import tifffile
import torch
from detectron2.data import detection_utils as utils
from detectron2.structures import BitMasks, BoxMode
from pycocotools import mask as coco_mask

from cellseg_d2.data.datasets import label_components, load_cell_dicts
from cellseg_d2.errors import CellDataError

from .label_roots import MAPS, SIZE, label_map, same


class TestDicts:
    def test_fields(self, root):
        dicts = load_cell_dicts(root)
        assert [d["image_id"] for d in dicts] == [1, 2, 3]
        assert [d["file_name"] for d in dicts] == [
            str(root / "train" / name / "image.tif") for name in "abc"
        ]
        empty, full, last = dicts
        assert empty["annotations"] == [] and empty["label_file_names"] == {}
        assert empty["kept_ids"] == {} and (empty["height"], empty["width"]) == SIZE
        assert full["instances"] == "ids"
        assert full["label_file_names"] == {
            0: str(root / "train/b/class1.tif"),
            1: str(root / "train/b/class2.tif"),
        }
        assert {k: v.tolist() for k, v in full["kept_ids"].items()} == {0: [1, 2], 1: [3, 5, 6]}
        assert all(v.dtype == np.int32 for v in full["kept_ids"].values())
        assert {k: v.tolist() for k, v in last["kept_ids"].items()} == {2: [], 3: [9]}

    def test_annotations_against_masks(self, root):
        full = load_cell_dicts(root)[1]
        pairs = [(k - 1, value) for k in MAPS for value in np.unique(MAPS[k])[1:]]
        for annotation, (category, value) in zip(full["annotations"], pairs, strict=True):
            mask = MAPS[category + 1] == value
            assert set(annotation) == {
                "bbox", "bbox_mode", "category_id", "segmentation", "area", "iscrowd",
            }  # fmt: skip
            assert annotation["category_id"] == category and annotation["iscrowd"] == 0
            assert annotation["bbox_mode"] is BoxMode.XYXY_ABS
            box = BitMasks(torch.from_numpy(mask[None])).get_bounding_boxes().tensor[0]
            assert annotation["bbox"] == box.tolist()
            assert annotation["area"] == mask.sum() and type(annotation["area"]) is int
            assert annotation["segmentation"]["size"] == list(SIZE)
            assert type(annotation["segmentation"]["counts"]) is bytes
            np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]), mask)

    def test_detectron2_reads_them(self, root):
        full = load_cell_dicts(root)[1]
        instances = utils.annotations_to_instances(full["annotations"], SIZE, "bitmask")
        assert instances.gt_classes.tolist() == [0, 0, 1, 1, 1]
        assert torch.equal(
            instances.gt_masks.get_bounding_boxes().tensor, instances.gt_boxes.tensor
        )

    def test_components(self, root):
        full = load_cell_dicts(root, "components")[1]
        assert full["instances"] == "components"
        for category, ids in full["kept_ids"].items():
            components = label_components(MAPS[category + 1])
            masks = [coco_mask.decode(a["segmentation"]) for a in full["annotations"]
                     if a["category_id"] == category]  # fmt: skip
            assert len(masks) == len(ids)
            for mask, value in zip(masks, ids, strict=True):
                np.testing.assert_array_equal(mask, components == value)
        # 3 is two instances now, 5 and 6 are one
        assert {k: v.tolist() for k, v in full["kept_ids"].items()} == {0: [1, 2], 1: [1, 2, 3]}

    def test_min_area_is_counted(self, root, caplog):
        with caplog.at_level(logging.INFO):
            dicts = load_cell_dicts(root, min_area=24)
        assert [a["area"] for d in dicts for a in d["annotations"]] == [46, 24, 24, 36]
        assert "Dropped 2 instances of fewer than 24 pixels" in caplog.text
        assert "3 images, 4 instances (class1 0, class2 3, class3 0, class4 1)" in caplog.text

    def test_one_folder(self, root):
        (record,) = load_cell_dicts(str(root / "train/b"))
        assert record["image_id"] == 1 and len(record["annotations"]) == 5

    def test_wrong_usage(self, root):
        for options in ({"instances": "x"}, {"min_area": 0}, {"split": "val"}):
            with pytest.raises(ValueError):
                load_cell_dicts(root, **options)


class TestFaults:
    def test_one(self, root):
        tifffile.imwrite(root / "train/b/class1.tif", np.zeros((24, 31), np.uint8))
        with pytest.raises(CellDataError) as caught:
            load_cell_dicts(root)
        assert caught.value.path == str(root / "train/b/class1.tif")

    def test_all_are_listed(self, root):
        (root / "train/a/image.tif").write_bytes(b"")
        (root / "train/c/class4.tif").write_bytes(b"II*\0\x08")
        with pytest.raises(CellDataError) as caught:
            load_cell_dicts(root)
        assert "2 faults" in str(caught.value)
        assert "a/image.tif" in str(caught.value) and "c/class4.tif" in str(caught.value)

    def test_layout(self, root):
        (root / "train/c/image.tif").unlink()
        with pytest.raises(CellDataError, match="without image.tif"):
            load_cell_dicts(root)
        with pytest.raises(CellDataError, match="4 faults"):
            load_cell_dicts(root, num_classes=1)

    def test_ignored_folders_are_named(self, root, caplog):
        (root / "train/notes").mkdir()
        assert len(load_cell_dicts(root)) == 3
        assert "Ignored 1 folders without TIFFs: notes" in caplog.text


class TestCache:
    def test_equal_to_parsing(self, root, tmp_path):
        for rule in ("ids", "components"):
            expected = load_cell_dicts(root, rule, 2)
            for _ in range(2):
                assert same(load_cell_dicts(root, rule, 2, cache_dir=tmp_path / "c"), expected)

    def test_is_used(self, root, tmp_path, monkeypatch):
        load_cell_dicts(root, cache_dir=tmp_path / "c")
        monkeypatch.setattr("cellseg_d2.data.datasets.read_instances", None)
        assert len(load_cell_dicts(root, cache_dir=tmp_path / "c")) == 3

    def test_one_changed_image(self, root, tmp_path):
        load_cell_dicts(root, cache_dir=tmp_path / "c")
        tifffile.imwrite(root / "train/b/class2.tif", label_map((8, 1, 3, 1, 3)))
        dicts = load_cell_dicts(root, cache_dir=tmp_path / "c")
        assert dicts[1]["kept_ids"][1].tolist() == [8]
        assert same(dicts, load_cell_dicts(root))

    def test_a_new_class_file_and_a_broken_one(self, root, tmp_path):
        load_cell_dicts(root, cache_dir=tmp_path / "c")
        tifffile.imwrite(root / "train/a/class1.tif", label_map((8, 1, 3, 1, 3)))
        assert len(load_cell_dicts(root, cache_dir=tmp_path / "c")[0]["annotations"]) == 1
        (root / "train/a/class1.tif").write_bytes(b"")
        with pytest.raises(CellDataError):
            load_cell_dicts(root, cache_dir=tmp_path / "c")

    def test_does_not_get_round_max_pixels(self, root, tmp_path):
        load_cell_dicts(root, cache_dir=tmp_path / "c")
        with pytest.raises(CellDataError, match="720 pixels"):
            load_cell_dicts(root, cache_dir=tmp_path / "c", max_pixels=719)

    def test_damage(self, root, tmp_path, caplog):
        expected = load_cell_dicts(root, cache_dir=tmp_path / "c")
        for path in (tmp_path / "c").iterdir():
            path.write_bytes(path.read_bytes()[:-3])
        assert same(load_cell_dicts(root, cache_dir=tmp_path / "c"), expected)
        assert caplog.text.count("unusable") == 3
        caplog.clear()
        assert same(load_cell_dicts(root, cache_dir=tmp_path / "c"), expected)
        assert "unusable" not in caplog.text

    def test_folder_that_cannot_be_written(self, root, tmp_path, caplog):
        (tmp_path / "c").touch()
        assert len(load_cell_dicts(root, cache_dir=tmp_path / "c")) == 3
        assert "not cached" in caplog.text


def test_garbage_collection_is_on_again(root):
    load_cell_dicts(root)
    assert gc.isenabled()
    gc.disable()
    try:
        load_cell_dicts(root)
        assert not gc.isenabled()
    finally:
        gc.enable()


class TestTestSplit:
    @pytest.fixture
    def root(self, tmp_path):
        folder = tmp_path / "test_release"
        folder.mkdir()
        for name, size in (("b", (5, 7)), ("a", (6, 8))):
            tifffile.imwrite(folder / f"{name}.tif", np.zeros(size, np.uint8))
        return tmp_path

    def write_map(self, root, *entries):
        keys = ("file_name", "id", "height", "width")
        entries = [dict(zip(keys, entry, strict=True)) for entry in entries]
        (root / "test_image_name_to_ids.json").write_text(json.dumps(entries))

    def test_without_id_map(self, root):
        assert load_cell_dicts(root, split="test") == [
            {
                "file_name": str(root / "test_release/a.tif"),
                "image_id": 1,
                "height": 6,
                "width": 8,
            },
            {
                "file_name": str(root / "test_release/b.tif"),
                "image_id": 2,
                "height": 5,
                "width": 7,
            },
        ]

    def test_with_id_map(self, root):
        self.write_map(root, ("b.tif", 1, 5, 7), ("a.tif", 7, 6, 8))
        assert [d["image_id"] for d in load_cell_dicts(root, split="test")] == [7, 1]

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ([("b.tif", 1, 5, 7)], "does not name"),
            ([("b.tif", 1, 5, 7), ("a.tif", 7, 6, 8), ("c.tif", 8, 6, 8)], "c.tif: found nothing"),
            ([("b.tif", 1, 5, 7), ("a.tif", 1, 6, 8)], "the id 1 given to"),
            ([("b.tif", 1, 5, 7), ("a.tif", 2, 8, 6)], "6×8 pixels"),
            ([("b.tif", 1, 5, 7), ("../a.tif", 2, 6, 8)], "not a plain file name"),
            ([("b.tif", 1, 5, 7), ("/a.tif", 2, 6, 8)], "not a plain file name"),
        ],
    )
    def test_faulty_id_map(self, root, entries, message):
        self.write_map(root, *entries)
        with pytest.raises(CellDataError, match=message):
            load_cell_dicts(root, split="test")

    def test_link_out_of_the_folder(self, root):
        (root / "test_release/a.tif").rename(root / "a.tif")
        (root / "test_release/a.tif").symlink_to(root / "a.tif")
        self.write_map(root, ("b.tif", 1, 5, 7), ("a.tif", 7, 6, 8))
        with pytest.raises(CellDataError, match="a link out of its folder"):
            load_cell_dicts(root, split="test")

    def test_id_map_that_is_a_broken_link(self, root):
        (root / "test_image_name_to_ids.json").symlink_to("gone.json")
        with pytest.raises(CellDataError, match="No such file"):
            load_cell_dicts(root, split="test")

    def test_no_test_images(self, tmp_path):
        with pytest.raises(CellDataError, match="test_release"):
            load_cell_dicts(tmp_path, split="test")


class TestRealData:
    def test_consep(self, real_data, tmp_path):
        dicts = load_cell_dicts(real_data / "consep_train", cache_dir=tmp_path)
        per_image = [len(d["annotations"]) for d in dicts]
        assert len(dicts) == 27 and sum(per_image) == 15_555
        assert (min(per_image), max(per_image), np.median(per_image)) == (20, 2_283, 647)
        counts = [sum(len(d["kept_ids"].get(k, ())) for d in dicts) for k in range(4)]
        assert counts == [371, 3_941, 5_537, 5_706]
        (record,) = (d for d in dicts if "consep_train_15" in d["file_name"])
        for category, path in record["label_file_names"].items():
            expected = tifffile.imread(path)
            masks = [a for a in record["annotations"] if a["category_id"] == category]
            rebuilt = np.zeros(expected.shape, expected.dtype)
            for annotation, value in zip(masks, record["kept_ids"][category], strict=True):
                rebuilt[coco_mask.decode(annotation["segmentation"]) > 0] = value
            np.testing.assert_array_equal(rebuilt, expected)
        assert same(load_cell_dicts(real_data / "consep_train", cache_dir=tmp_path), dicts)

    def test_cache_is_faster(self, real_data, tmp_path):
        def fastest(**options):
            times = []
            for _ in range(3):
                start = time.perf_counter()
                load_cell_dicts(real_data / "consep_train", **options)
                times.append(time.perf_counter() - start)
            return min(times)

        load_cell_dicts(real_data / "consep_train", cache_dir=tmp_path)
        # An idle machine shows more than ten times; a busy one must not fail the test.
        assert fastest() > 3 * fastest(cache_dir=tmp_path)

    def test_released_layout(self, real_data):
        (record,) = load_cell_dicts(real_data / "layout_sample")
        assert (record["height"], record["width"]) == (397, 482)
        assert record["kept_ids"][0].tolist() == [1, 2]
        assert record["kept_ids"][1].tolist() == list(range(3, 162))
