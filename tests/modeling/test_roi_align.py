"""RoIAlign as a sparse product against torchvision's kernel, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from cellseg_d2.modeling.roi_align import roi_align_pyramid

SIZES = [(24, 30), (12, 15), (6, 8)]
SCALES = [0.25, 0.125, 0.0625]


def pyramid(dtype: torch.dtype = torch.float32, channels: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(3, channels, *size, generator=generator, dtype=dtype).requires_grad_()
        for size in SIZES
    ]


def random_rois(count: int, seed: int, largest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of all sizes around the 96x120 image, many over its border, and their levels."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([150.0, 126.0]) - 15
    extent = torch.rand(count, 2, generator=generator) * largest
    image = torch.randint(0, 3, (count, 1), generator=generator).float()
    levels = torch.randint(0, len(SCALES), (count,), generator=generator)
    return torch.cat([image, corner, corner + extent], dim=1), levels


def by_torchvision(features, rois, levels, output_size, sampling_ratio=0) -> torch.Tensor:
    pooled = features[0].new_zeros(len(rois), features[0].shape[1], *output_size)
    for level, (feature, scale) in enumerate(zip(features, SCALES, strict=True)):
        chosen = torch.nonzero(levels == level)[:, 0]
        part = roi_align(feature, rois[chosen], output_size, scale, sampling_ratio, aligned=True)
        pooled = pooled.index_put((chosen,), part)
    return pooled


def check_equal(features, rois, levels, output_size, sampling_ratio=0) -> torch.Tensor:
    """Compare with torchvision, forward and backward; return what was pooled."""
    ours = roi_align_pyramid(features, SCALES, rois, levels, output_size, sampling_ratio)
    oracle = by_torchvision(features, rois, levels, output_size, sampling_ratio)
    torch.testing.assert_close(ours, oracle, rtol=1e-5, atol=2e-6)
    upstream = torch.randn(oracle.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(ours, features, upstream, retain_graph=True)
    expected = torch.autograd.grad(oracle, features, upstream)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=2e-5)
    return ours


@pytest.mark.parametrize("largest", [4.0, 30.0, 110.0])
@pytest.mark.parametrize("output_size", [(7, 7), (14, 14), (3, 5), (1, 1)])
def test_equal_to_torchvision(largest: float, output_size: tuple[int, int]) -> None:
    rois, levels = random_rois(60, seed=output_size[0], largest=largest)
    check_equal(pyramid(), rois, levels, output_size)


@pytest.mark.parametrize("sampling_ratio", [1, 2, 5])
def test_equal_with_a_fixed_number_of_samples(sampling_ratio: int) -> None:
    rois, levels = random_rois(40, seed=3, largest=110.0)
    # Without area along both axes, or one; and of less than a pixel.
    rois[:4, 3:] = rois[:4, 1:3]
    rois[4:8, 3] = rois[4:8, 1]
    rois[8:12, 3:] = rois[8:12, 1:3] + 0.5
    check_equal(pyramid(), rois, levels, (7, 7), sampling_ratio)


def test_whole_images_and_beyond() -> None:
    rois = torch.tensor([[0, 0, 0, 120, 96], [1, -400, -300, 500, 420], [2, 0, 40, 120, 41]])
    for level in range(3):
        check_equal(pyramid(), rois.float(), torch.full((3,), level), (7, 7))


def test_samples_on_whole_pixels_and_on_the_last_one() -> None:
    """Bins of exactly one pixel, and of two, whose samples fall on centers or between them."""
    rois = torch.tensor(
        [[0, 2, 2, 30, 30], [0, 4, 4, 32, 32], [1, 64, 40, 120, 96], [1, 92, 68, 120, 96.0]]
    )
    check_equal(pyramid(), rois, torch.zeros(4, dtype=torch.int64), (7, 7))


def test_rois_outside_and_without_area_give_zeros_and_no_gradient() -> None:
    rois = torch.tensor(
        [
            [0, 500, 500, 540, 540],
            [1, -90, 10, -40, 50],
            [2, 30, 30, 30, 60],
            [0, 40, 40, 20, 60],
            [1, 8, 8, 8, 8.0],
        ]
    )
    features = pyramid()
    pooled = check_equal(features, rois, torch.tensor([0, 1, 2, 0, 1]), (7, 7))
    assert not pooled.any()
    for gradient in torch.autograd.grad(pooled.sum(), features):
        assert not gradient.any()


def test_no_rois() -> None:
    features = pyramid()
    pooled = check_equal(features, torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), (7, 7))
    assert pooled.shape == (0, 5, 7, 7)


def test_order_of_rois_of_mixed_sizes_is_kept() -> None:
    """Each RoI alone gives what it gives among others."""
    rois, levels = random_rois(12, seed=8, largest=100.0)
    together = roi_align_pyramid(pyramid(), SCALES, rois, levels, (4, 4))
    for k in range(len(rois)):
        one = slice(k, k + 1)
        alone = roi_align_pyramid(pyramid(), SCALES, rois[one], levels[one], (4, 4))
        torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-6)


def test_gradient_in_double_precision() -> None:
    features = [
        torch.randn(2, 2, *size, dtype=torch.float64).requires_grad_() for size in [(6, 7), (3, 4)]
    ]
    rois = torch.tensor([[0, 3, 2, 9, 11], [1, -4, 5, 20, 30], [0, 6, 0, 21, 22]]).double()
    levels = torch.tensor([0, 1, 0])

    def pool(*pyramid: torch.Tensor) -> torch.Tensor:
        return roi_align_pyramid(pyramid, SCALES[:2], rois, levels, (2, 3))

    assert torch.autograd.gradcheck(pool, tuple(features))
    oracle = roi_align(features[0], rois[[0, 2]], (2, 3), SCALES[0], 0, aligned=True)
    torch.testing.assert_close(pool(*features)[[0, 2]], oracle, rtol=1e-13, atol=1e-13)


def test_formats_of_memory() -> None:
    """Channels last or first: the same numbers, each with a gradient of its own format."""
    rois, levels = random_rois(30, seed=4, largest=60.0)
    plain = pyramid()
    last = [
        level.detach().to(memory_format=torch.channels_last).requires_grad_() for level in plain
    ]
    pooled = [roi_align_pyramid(x, SCALES, rois, levels, (7, 7)) for x in (plain, last)]
    assert torch.equal(*pooled)
    assert pooled[0].is_contiguous(memory_format=torch.channels_last)
    for features, result, memory_format in (
        (plain, pooled[0], torch.contiguous_format),
        (last, pooled[1], torch.channels_last),
    ):
        for gradient in torch.autograd.grad(result.square().sum(), features):
            assert gradient.is_contiguous(memory_format=memory_format)


def test_bfloat16_features_keep_the_boxes_precision() -> None:
    """Rounding boxes to bfloat16 would move them by up to a pixel of the image here."""
    features = [level.detach().bfloat16().requires_grad_() for level in pyramid()]
    rois, levels = random_rois(50, seed=6, largest=40.0)
    pooled = roi_align_pyramid(features, SCALES, rois, levels, (7, 7))
    oracle = by_torchvision([level.float() for level in features], rois, levels, (7, 7))
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), oracle, rtol=2**-8, atol=1e-6)
    gradients = torch.autograd.grad(pooled.sum(), features)
    for gradient, expected in zip(
        gradients, torch.autograd.grad(oracle.sum(), features), strict=True
    ):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient.float(), expected.float(), rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_each_time(threads: int) -> None:
    rois, levels = random_rois(200, seed=2, largest=50.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(3):
            features = pyramid()
            pooled = roi_align_pyramid(features, SCALES, rois, levels, (7, 7))
            runs.append([pooled, *torch.autograd.grad(pooled.square().sum(), features)])
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))
