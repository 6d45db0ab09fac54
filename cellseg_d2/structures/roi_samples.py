"""Where RoIAlign samples an axis, in the order of arithmetic of torchvision's kernel."""

from typing import NamedTuple

import torch


class Samples(NamedTuple):
    """Where n RoIs are sampled along one axis; G is the most samples a bin, M the bins.

    Attributes:
        low: (G, n, M) int64, the pixel at or before each sample.
        high: (G, n, M) int64, the pixel after it.
        low_weight: (G, n, M) floating point, of ``low``; zero where the RoI has no such sample.
        high_weight: (G, n, M) floating point, of ``high``.
        per_bin: (n,) floating point, samples a bin, those outside the image included.
    """

    low: torch.Tensor
    high: torch.Tensor
    low_weight: torch.Tensor
    high_weight: torch.Tensor
    per_bin: torch.Tensor


def sample_axis(
    start: torch.Tensor,
    extent: torch.Tensor,
    num_bins: int,
    length: int | torch.Tensor,
    sampling_ratio: int = 0,
) -> Samples:
    """Place samples as ``pre_calc_for_bilinear_interpolate`` of torchvision's ``roi_align`` does.

    Args:
        start: (n,) the RoIs' first coordinates, pixel centers at whole numbers; n is not 0.
        extent: (n,) the RoIs' sizes, positive.
        num_bins: M, bins an RoI.
        length: of the image along this axis; one number, or (n,) integers.
        sampling_ratio: samples a bin; 0 for as many as keep them a pixel or less apart.

    Returns:
        The samples, in the dtype of ``start``.
    """
    if isinstance(length, torch.Tensor):
        length = length[:, None]
    bin_size = (extent / num_bins)[:, None]
    per_bin = torch.full_like(bin_size, sampling_ratio) if sampling_ratio else bin_size.ceil()
    sample = torch.arange(int(per_bin.max()), device=start.device)[:, None, None]
    bins = torch.arange(num_bins, device=start.device)
    # Algebraically equal forms of this line round differently.
    position = start[:, None] + bins * bin_size + (sample + 0.5) * bin_size / per_bin
    counts = (sample < per_bin) & (position >= -1) & (position <= length)
    position = position.clamp(min=0).clamp(max=length - 1)
    low = position.long()
    high_weight = position - low
    return Samples(
        low,
        (low + 1).clamp(max=length - 1),
        (1 - high_weight) * counts,
        high_weight * counts,
        per_bin[:, 0],
    )
