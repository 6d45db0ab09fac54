"""The sample of training images; the loaders are tested with the trainer."""

from __future__ import annotations

import pytest
from detectron2.data import DatasetCatalog

from cellseg_d2 import ConfigError
from cellseg_d2.engine.data_sets import TRAIN_SAMPLE, data_set_dicts, register_train_sample


def names(cfg) -> list[str]:
    register_train_sample(cfg)
    return [item["file_name"] for item in DatasetCatalog.get(TRAIN_SAMPLE)]


def test_the_sample_is_fixed_by_the_seed(tiny) -> None:
    drawn = [names(tiny("TEST.TRAIN_IMAGES", 2, "SEED", seed)) for seed in (1, 1, 2, 3, 4, 5)]
    images = [item["file_name"] for item in DatasetCatalog.get("cells_train")]
    assert drawn[0] == drawn[1]
    assert len({tuple(each) for each in drawn}) > 1
    for each in drawn:
        assert len(set(each)) == 2 and each == [name for name in images if name in each]
    assert names(tiny("TEST.TRAIN_IMAGES", 99)) == images, "no more than there are"


def test_its_scores_are_told_from_the_validations(tiny, train) -> None:
    trainer = train(tiny("TEST.TRAIN_IMAGES", 2, "SOLVER.EMA.ENABLED", True))
    tasks = ["bbox", "segm", "panoptic"]
    assert list(trainer.evaluation.results) == [
        *(f"train/{task}" for task in tasks),
        *tasks,
        *(f"ema/{task}" for task in tasks),
    ]
    assert {"train/segm/AP50", "ema/segm/AP50", "segm/AP50"} <= set(trainer.storage.latest())


def test_training_images_alone_may_be_evaluated(tiny, train) -> None:
    trainer = train(tiny("DATASETS.TEST", (), "TEST.TRAIN_IMAGES", 2))
    assert list(trainer.evaluation.results) == ["train/bbox", "train/segm", "train/panoptic"]


def test_names_and_numbers_that_cannot_be(tiny) -> None:
    with pytest.raises(ConfigError, match="TRAIN_IMAGES is -2"):
        register_train_sample(tiny("TEST.TRAIN_IMAGES", -2))
    with pytest.raises(ConfigError, match="no data set is called cells_none"):
        data_set_dicts(["cells_none"])
    with pytest.raises(ConfigError, match="no images"):
        data_set_dicts([])
