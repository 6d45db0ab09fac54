"""A choice draws each of its augmentations as often as their weights say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform

from cellseg_d2.data.augmentation import CellAugInput
from cellseg_d2.data.augmentation.choice import OneOf
from cellseg_d2.data.augmentation.filters import GaussianBlur, GaussianNoise, MedianBlur
from cellseg_d2.data.augmentation.photometric import Gamma
from cellseg_d2.data.augmentation.warp import Rot90

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)


def counts(choice: OneOf, draws: int = 900) -> Counter[str]:
    np.random.seed(0)
    return Counter(type(choice.get_transform(IMAGE)).__name__ for _ in range(draws))


def test_equal_weights_share_the_probability() -> None:
    drawn = counts(OneOf([Gamma(), GaussianBlur(), GaussianNoise()], prob=0.6))
    assert abs(drawn["NoOpTransform"] - 360) < 60  # four standard deviations of a binomial draw
    for name in ("GammaTransform", "GaussianBlurTransform", "GaussianNoiseTransform"):
        assert abs(drawn[name] - 180) < 48


def test_a_choice_s_own_prob_is_its_weight_and_not_drawn_again() -> None:
    drawn = counts(OneOf([Gamma(prob=0.1), MedianBlur(prob=0.3)]))
    assert set(drawn) == {"GammaTransform", "MedianBlurTransform"}
    assert abs(drawn["GammaTransform"] - 225) < 52


def test_the_choices_handed_in_keep_their_prob() -> None:
    gamma = Gamma(prob=0.1)
    choice = OneOf([gamma])
    assert gamma.prob == 0.1
    assert counts(choice) == {"GammaTransform": 900}


def test_prob_zero_draws_none() -> None:
    assert counts(OneOf([Gamma()], prob=0)) == {"NoOpTransform": 900}


def test_any_augmentation_can_be_chosen_and_moves_the_labels_too() -> None:
    ids = np.arange(36, dtype=np.int32).reshape(6, 6)
    choice = OneOf([T.RandomFlip(0.5), Rot90(0.5), T.FixedSizeCrop((3, 3))])
    seen = set()
    for seed in range(40):
        np.random.seed(seed)
        sample = CellAugInput(np.repeat(ids[..., None], 3, axis=2).astype(np.uint8), [ids])
        choice(sample)
        assert np.array_equal(sample.image[..., 0], sample.label_maps[0])
        seen.add(sample.label_maps[0].tobytes())
    assert len(seen) > 3


class NeedsLabelMaps(T.Augmentation):
    def get_transform(self, image: np.ndarray, label_maps: list[np.ndarray]) -> Transform:
        assert image is IMAGE and len(label_maps) == 1
        return T.HFlipTransform(image.shape[1])


def test_a_choice_is_handed_what_it_asks_for() -> None:
    sample = CellAugInput(IMAGE, [np.zeros((6, 6), np.int32)])
    assert isinstance(OneOf([NeedsLabelMaps()])(sample), T.HFlipTransform)
    assert np.array_equal(sample.image, IMAGE[:, ::-1])


def test_the_seed_alone_decides() -> None:
    choice = OneOf([Gamma(), GaussianNoise(), MedianBlur()], prob=0.8)

    def under(seed: int) -> bytes:
        np.random.seed(seed)
        sample = CellAugInput(IMAGE, [])
        choice(sample)
        return sample.image.tobytes()

    first = [under(seed) for seed in range(20)]
    assert [under(seed) for seed in reversed(range(20))] == first[::-1]


@pytest.mark.parametrize(
    ("augmentations", "prob"), [([], 1.0), ([Gamma(prob=0)], 1.0), ([Gamma()], 1.2)]
)
def test_impossible_choices_are_refused(augmentations: list[T.Augmentation], prob: float) -> None:
    with pytest.raises(ValueError, match="prob"):
        OneOf(augmentations, prob)


def test_nothing_drawn_is_no_transform() -> None:
    sample = CellAugInput(IMAGE, [])
    assert isinstance(OneOf([Gamma()], prob=0)(sample), NoOpTransform)
    assert sample.image is IMAGE


def test_a_log_shows_every_choice() -> None:
    shown = str(OneOf([Gamma((0.5, 1.5)), GaussianBlur((3, 5), prob=0.4)], prob=0.15))
    assert shown == (
        "OneOf([Gamma(gamma=(0.5, 1.5)), GaussianBlur(kernel=(3, 5), sigma=(0.0, 0.0), prob=0.4)], "
        "prob=0.15)"
    )
