"""The mapper's instances against BitMasks of the same pixels, and the contract on randomness."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage as ndi
import tifffile
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks

from cellseg_d2.config import load_config
from cellseg_d2.data import CellDataError, CellDatasetMapper, load_cell_dicts
from cellseg_d2.data.dataset_mapper import build_instances, seeded_random
from cellseg_d2.data.loader import StreamSampler, build_stream_loader
from cellseg_d2.data.target_generator import CenterBoundaryTargets


def label_map(height: int, width: int, seed: int, cells: int) -> np.ndarray:
    """Squares at random places, later ones over earlier ones, ids far apart."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int32)
    for k in range(cells):
        y, x = rng.integers(0, height), rng.integers(0, width)
        side = int(rng.integers(1, 9))
        labels[y : y + side, x : x + side] = 1 + k * 7919
    return labels


def write_image(folder: Path, size: tuple[int, int], cells: dict[int, int], seed: int = 0) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tifffile.imwrite(folder / "image.tif", rng.integers(0, 255, (*size, 3), np.uint8))
    for number, count in cells.items():
        labels = label_map(*size, seed + number, count)
        tifffile.imwrite(folder / f"class{number}.tif", labels)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_image(tmp_path / "a", (50, 70), {1: 12, 3: 5}, seed=1)
    write_image(tmp_path / "b", (33, 35), {2: 8}, seed=2)
    write_image(tmp_path / "c", (20, 20), {}, seed=3)
    return tmp_path


def mapper(is_train: bool = True, **changes) -> CellDatasetMapper:
    cfg = load_config()
    cfg.SEED = 5
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (0,), 0
    for key, value in changes.items():
        node, name = cfg, key
        while "__" in name:
            head, name = name.split("__", 1)
            node = node[head]
        node[name] = value
    return CellDatasetMapper(cfg, is_train)


def reference(record: dict) -> tuple[torch.Tensor, list[int]]:
    """One bitmap per id, the plain way."""
    masks, classes = [], []
    for category, path in sorted(record["label_file_names"].items()):
        labels = tifffile.imread(path)
        for i in np.unique(labels[labels > 0]):
            masks.append(torch.from_numpy(labels == i))
            classes.append(category)
    return torch.stack(masks), classes


def test_instances_equal_bitmaps_of_the_files(root: Path) -> None:
    record = load_cell_dicts(root)[0]
    mapped = mapper(INPUT__CELL__RECIPE="none")(record)
    masks, classes = reference(record)
    instances = mapped["instances"]
    assert instances.gt_classes.tolist() == classes
    assert torch.equal(instances.gt_masks.to_bit_masks().tensor, masks)
    assert torch.equal(instances.gt_boxes.tensor, BitMasks(masks).get_bounding_boxes().tensor)
    assert instances.image_size == (50, 70)
    expected = tifffile.imread(record["file_name"])[:, :, ::-1].transpose(2, 0, 1)  # BGR
    assert np.array_equal(mapped["image"].numpy(), expected)
    assert {"annotations", "label_file_names", "kept_ids"}.isdisjoint(mapped)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("channel_order", ["RGB", "BGR"])
def test_colour_orders(root: Path, image_format: str, channel_order: str) -> None:
    record = load_cell_dicts(root)[1]
    mapped = mapper(False, INPUT__FORMAT=image_format, INPUT__CELL__CHANNEL_ORDER=channel_order)(
        record
    )
    stored = tifffile.imread(record["file_name"]).transpose(2, 0, 1)
    expected = stored if image_format == channel_order else stored[::-1]
    assert np.array_equal(mapped["image"].numpy(), expected)
    assert "instances" not in mapped


def test_every_augmentation_leaves_image_and_masks_aligned(root: Path) -> None:
    record = load_cell_dicts(root)[0]
    # The red channel marks the cells, so that after any transform it has to equal the masks.
    covered = sum((tifffile.imread(p) > 0) for p in record["label_file_names"].values()).astype(
        bool
    )
    image = np.zeros((*covered.shape, 3), np.uint8)
    image[covered, 0] = 255
    tifffile.imwrite(record["file_name"], image)
    changes = {"INPUT__CROP__ENABLED": True, "INPUT__CROP__TYPE": "absolute"}
    augment = mapper(INPUT__FORMAT="RGB", INPUT__CROP__SIZE=[32, 40], **changes)
    sizes = set()
    for position in range(12):
        mapped = augment(record, position)
        masks = mapped["instances"].gt_masks.to_bit_masks().tensor
        assert torch.equal(masks.any(dim=0), mapped["image"][0] == 255)
        assert masks.flatten(1).any(dim=1).all(), "an instance that left the frame is still there"
        sizes.add(mapped["instances"].image_size)
    assert sizes == {(32, 40), (40, 32)}


def test_an_image_without_instances_is_background(root: Path) -> None:
    mapped = mapper()(load_cell_dicts(root)[2])
    instances = mapped["instances"]
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_masks.crop_and_resize(torch.zeros(0, 4), 28).shape == (0, 28, 28)


def test_ids_that_the_rule_dropped_stay_dropped(root: Path) -> None:
    record = load_cell_dicts(root, min_area=10)[0]
    mapped = mapper(INPUT__CELL__RECIPE="none")(record)
    assert len(mapped["instances"]) == len(record["annotations"]) < len(reference(record)[1])
    assert mapped["instances"].gt_masks.area().min() >= 10


def test_components_rule_agrees_with_the_annotations(root: Path) -> None:
    record = load_cell_dicts(root, instances="components")[0]
    mapped = mapper(INPUT__CELL__RECIPE="none")(record)
    boxes = np.array([a["bbox"] for a in record["annotations"]])
    assert np.array_equal(mapped["instances"].gt_boxes.tensor.numpy(), boxes)


def test_an_id_cut_in_two_stays_one_instance() -> None:
    labels = np.zeros((10, 10), np.int32)
    labels[2:8, 1:9] = 40
    labels[4:6] = 0  # a crop or an overlap left two pieces
    instances = build_instances([labels], [2], {2: np.array([40], np.int32)}, (10, 10))
    assert len(instances) == 1
    assert instances.gt_boxes.tensor.tolist() == [[1, 2, 9, 8]]


def test_the_same_id_in_two_classes_is_two_instances() -> None:
    labels = np.zeros((6, 6), np.int32)
    labels[:3] = 5
    kept = {0: np.array([5], np.int32), 3: np.array([5], np.int32)}
    instances = build_instances([labels, labels[::-1]], [0, 3], kept, (6, 6))
    assert instances.gt_classes.tolist() == [0, 3]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 6, 3], [0, 3, 6, 6]]


def sample_bytes(batch: list[dict]) -> list[bytes]:
    return [
        b["image"].numpy().tobytes() + b["instances"].gt_masks.label_maps.numpy().tobytes()
        for b in batch
    ]


@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_gives_the_same_bytes(root: Path, workers: int) -> None:
    dicts = load_cell_dicts(root)

    def batches(num_workers: int, start: int = 0, count: int = 6) -> list[list[bytes]]:
        sampler = StreamSampler(len(dicts), 2, seed=1, start=start)
        loader = build_stream_loader(dicts, mapper(), sampler, num_workers)
        return [sample_bytes(batch) for batch in itertools.islice(loader, count)]

    alone = batches(0)
    assert batches(workers) == alone
    assert batches(workers, start=4, count=2) == alone[4:], "resuming by position differs"


def test_positions_draw_differently_and_repeatably(root: Path) -> None:
    record = load_cell_dicts(root)[0]
    augment = mapper()
    drawn = [sample_bytes([augment(record, position)])[0] for position in range(40)]
    assert len(set(drawn)) == 8, "the dihedral recipe has eight outcomes"
    assert drawn == [sample_bytes([augment(record, position)])[0] for position in range(40)]


def test_mapping_leaves_the_global_generators_alone(root: Path) -> None:
    record = load_cell_dicts(root)[0]
    np.random.seed(1)
    expected = np.random.uniform(size=3)
    np.random.seed(1)
    mapper()(record, 3)
    assert np.array_equal(np.random.uniform(size=3), expected)


def test_the_generators_are_put_back_after_an_error() -> None:
    np.random.seed(1)
    expected = np.random.uniform()
    np.random.seed(1)
    with pytest.raises(RuntimeError), seeded_random((1, 2)):
        np.random.uniform(size=10)
        raise RuntimeError
    assert np.random.uniform() == expected


def test_a_file_that_changed_size_is_named(root: Path) -> None:
    record = load_cell_dicts(root)[0]
    tifffile.imwrite(record["file_name"], np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(CellDataError, match=r"image\.tif.*9x9.*50x70"):
        mapper()(record)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT__RANDOM_FLIP", "horizontal"),
        ("INPUT__MASK_FORMAT", "polygon"),
        ("MODEL__KEYPOINT_ON", True),
        ("MODEL__LOAD_PROPOSALS", True),
        ("DATALOADER__ASPECT_RATIO_GROUPING", True),
        ("INPUT__COLOR_AUG_SSD", True),
        ("INPUT__CROP__SINGLE_CATEGORY_MAX_AREA", 0.5),
    ],
)
def test_upstream_options_that_would_be_ignored_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key.replace("__", r"\.")):
        mapper(**{key: value})


def test_upstream_transforms_work_in_the_mapper(root: Path) -> None:
    record = load_cell_dicts(root)[0]
    custom = mapper()
    custom.augmentations = T.AugmentationList(
        [T.RandomFlip(prob=1.0), T.RandomCrop("absolute", (20, 20))]
    )
    assert custom(record)["image"].shape == (3, 20, 20)


HEAD_ON = {"MODEL__CENTER_BOUNDARY_HEAD__ENABLED": True}


def test_center_and_boundary_maps_are_made_only_where_asked_for(root: Path) -> None:
    record = load_cell_dicts(root)[0]
    names = {"center_map", "boundary_map"}
    assert names.isdisjoint(mapper()(record))
    assert names.isdisjoint(mapper(False, **HEAD_ON)(record))
    mapped = mapper(**HEAD_ON)(record)
    assert names <= set(mapped)
    height, width = mapped["image"].shape[1:]
    assert mapped["center_map"].shape == mapped["boundary_map"].shape == (height, width)


def test_center_and_boundary_maps_follow_every_augmentation(root: Path) -> None:
    record = load_cell_dicts(root)[0]
    changes = {"INPUT__CROP__ENABLED": True, "INPUT__CROP__TYPE": "absolute"}
    augment = mapper(INPUT__CROP__SIZE=[32, 40], **changes, **HEAD_ON)
    targets = CenterBoundaryTargets(5.0)
    maps = set()
    for position in range(12):
        mapped = augment(record, position)
        expected = targets(mapped["instances"].gt_masks)
        for name, values in expected.items():
            assert torch.equal(mapped[name], values)
        maps.add(mapped["boundary_map"].numpy().tobytes())
    assert len(maps) > 8


def test_a_flipped_image_has_flipped_maps(root: Path) -> None:
    # Of odd width, so that truncation to whole pixels is the same from both sides.
    labels = np.zeros((50, 70), np.int32)
    labels[3:12, 5:10], labels[30:, 60:69], labels[0:5, 40:47] = 1, 2, 3
    record = load_cell_dicts(root)[0]
    for path in record["label_file_names"].values():
        tifffile.imwrite(path, labels)
    record["kept_ids"] = dict.fromkeys(record["kept_ids"], np.array([1, 2, 3], np.int32))
    upright = mapper(INPUT__CELL__RECIPE="none", **HEAD_ON)
    flipped = mapper(INPUT__CELL__RECIPE="none", **HEAD_ON)
    flipped.augmentations = T.AugmentationList([T.RandomFlip(prob=1.0)])
    expected, found = upright(record), flipped(record)
    assert torch.equal(found["image"], expected["image"].flip(2))
    assert torch.equal(found["boundary_map"], expected["boundary_map"].flip(1))
    torch.testing.assert_close(found["center_map"], expected["center_map"].flip(1))


def test_ids_that_the_rule_dropped_have_neither_centre_nor_boundary(root: Path) -> None:
    record = load_cell_dicts(root, min_area=10)[0]
    changes = {"INPUT__CELL__RECIPE": "none", "MODEL__CENTER_BOUNDARY_HEAD__CENTER_SIGMA": 0.1}
    mapped = mapper(**changes, **HEAD_ON)(record)
    near = np.zeros((50, 70), bool)
    for mask in mapped["instances"].gt_masks:
        near |= ndi.binary_dilation(mask.numpy())
    assert 0 < np.count_nonzero(mapped["center_map"]) <= len(record["annotations"])
    assert not mapped["boundary_map"].numpy()[~near].any()
    everything = mapper(**changes, **HEAD_ON)(load_cell_dicts(root)[0])
    assert everything["boundary_map"].numpy()[~near].any()


@pytest.mark.slow
def test_real_tiles(real_data: Path) -> None:
    """Two real tiles: as many instances as parsed, tight boxes."""
    for record in load_cell_dicts(real_data / "consep_train" / "consep_train_01"):
        mapped = mapper(INPUT__CELL__RECIPE="none")(record)
        boxes = np.array([a["bbox"] for a in record["annotations"]])
        assert np.array_equal(mapped["instances"].gt_boxes.tensor.numpy(), boxes)
