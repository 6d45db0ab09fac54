"""RoIAlign on label maps: what each RoI sees of its instance, without a bitmap of the instance.

A target bin is the mean of bilinear samples of a 0/1 mask, compared with one half. All bins are
computed at once as a product of matrices, ``rows @ window @ columns``, since bilinear weights and
grids of samples are separable. That is exact but for rounding, and the kernel rounds in its own
way; so the few bins whose mean is within rounding of one half are computed again, sample by sample
in the kernel's order of arithmetic. The result is that of torchvision's CPU kernel to the bit.
"""

import torch

from .chunks import chunks_of_similar_size
from .roi_samples import Samples, sample_axis

# Pixels looked at together: a dozen megabytes of windows and matrices.
_PIXELS_PER_CHUNK = 2**18
# The kernel's sum of s nonnegative float32 samples is off by less than (s + 8) * 2**-24 of itself,
# by the sample's own roundings and one a sum; twice that, as a margin.
_ROUNDING = 2.0**-23
_ROUNDINGS_OF_A_SAMPLE = 8


def crop_label_maps(
    label_maps: torch.Tensor,
    layers: torch.Tensor,
    ids: torch.Tensor,
    boxes: torch.Tensor,
    mask_size: int,
) -> torch.Tensor:
    """Crop an instance by each box and resize it to a square.

    Equal to ``ROIAlign((M, M), 1.0, sampling_ratio=0, aligned=True)`` on the instances' bitmaps,
    compared with 0.5, which is ``BitMasks.crop_and_resize``: to the bit on the CPU; CUDA's kernel
    fuses multiplications and additions, and may differ in a pixel of 10^5. 80 times as fast for 128
    RoIs around cells in 1000x1000 pixels (``tools/benchmark.py``). Memory is that of the boxes'
    pixels, in chunks; a box is looked at whole, so at most that of the image.

    Args:
        label_maps: (L, H, W), an integer dtype.
        layers: (N,) int64, the map of each instance.
        ids: (N,) its id there, in the dtype of ``label_maps``.
        boxes: (N, 4) XYXY in pixels, finite; those without area give empty targets. They may reach
            beyond the image, whose surroundings are background.
        mask_size: M, the side of the targets in pixels.

    Returns:
        (N, M, M) bool.
    """
    targets = torch.zeros(
        len(boxes), mask_size, mask_size, dtype=torch.bool, device=label_maps.device
    )
    # The kernel aligns pixel centers by half a pixel before it takes the size: rounding matters.
    boxes = boxes.to(device=label_maps.device, dtype=torch.float32) - 0.5
    extents = boxes[:, 2:] - boxes[:, :2]
    occupied = (extents > 0).all(dim=1, keepdim=True)
    for chunk in chunks_of_similar_size(extents.ceil() * occupied, _PIXELS_PER_CHUNK):
        start, extent = boxes[chunk, :2], extents[chunk]
        x = sample_axis(start[:, 0], extent[:, 0], mask_size, label_maps.shape[2])
        y = sample_axis(start[:, 1], extent[:, 1], mask_size, label_maps.shape[1])
        targets[chunk] = _crop(label_maps, layers[chunk], ids[chunk], y, x)
    return targets


def _crop(
    label_maps: torch.Tensor, layers: torch.Tensor, ids: torch.Tensor, y: Samples, x: Samples
) -> torch.Tensor:
    """Targets of RoIs of similar size, (n, M, M) bool."""
    rows, row_weights = _window(y)
    columns, column_weights = _window(x)
    window = label_maps[layers[:, None, None], rows[:, :, None], columns[:, None, :]]
    # In float64, which neither autocast nor TF32 touches.
    is_instance = (window == ids[:, None, None]).to(torch.float64)
    total = row_weights @ is_instance @ column_weights.transpose(1, 2)

    count = (y.per_bin * x.per_bin)[:, None, None]
    half = count / 2
    rounding = (count + _ROUNDINGS_OF_A_SAMPLE) * _ROUNDING
    targets = total >= half
    unsure = torch.nonzero((total - half).abs() <= rounding * total)
    if len(unsure):
        roi, row_bin, column_bin = unsure.unbind(dim=1)
        total = _sum_as_kernel(
            label_maps,
            layers[roi],
            ids[roi],
            [part[:, roi, row_bin] for part in y[:4]],
            [part[:, roi, column_bin] for part in x[:4]],
        )
        targets[roi, row_bin, column_bin] = total / count[roi, 0, 0] >= 0.5
    return targets


def _window(samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
    """The pixels under each RoI along one axis, and what each adds to each bin.

    Returns:
        (n, P) int64 pixels, padded to the widest RoI, and (n, M, P) float64 weights.
    """
    num_samples, num_rois, mask_size = samples.low.shape
    first = samples.low[0, :, :1]
    offsets = torch.cat([samples.low, samples.high]) - first
    weights = torch.cat([samples.low_weight, samples.high_weight]).double()
    # Samples that an RoI does not have lie past its end; without weight, they may go anywhere.
    offsets *= weights > 0
    width = int(offsets.max()) + 1
    matrix = weights.new_zeros(num_rois, mask_size, width)
    matrix.scatter_add_(2, offsets.permute(1, 2, 0), weights.permute(1, 2, 0))
    pixels = first + torch.arange(width, device=first.device)
    return pixels.clamp(max=samples.high.max()), matrix


def _sum_as_kernel(
    label_maps: torch.Tensor,
    layers: torch.Tensor,
    ids: torch.Tensor,
    y: list[torch.Tensor],
    x: list[torch.Tensor],
) -> torch.Tensor:
    """Sum the samples of single bins in the order of ``roi_align_kernel.cpp``, in float32.

    Args:
        label_maps: (L, H, W).
        layers: (B,) map of each bin's instance.
        ids: (B,) its id.
        y: the first four fields of ``Samples``, each (G, B).
        x: likewise.

    Returns:
        (B,) float32.
    """
    total = torch.zeros(len(ids), dtype=torch.float32, device=ids.device)
    x_low, x_high, x_low_weight, x_high_weight = x
    for y_low, y_high, y_low_weight, y_high_weight in zip(*y, strict=True):
        row = y_low_weight * x_low_weight * (label_maps[layers, y_low, x_low] == ids)
        row += y_low_weight * x_high_weight * (label_maps[layers, y_low, x_high] == ids)
        row += y_high_weight * x_low_weight * (label_maps[layers, y_high, x_low] == ids)
        row += y_high_weight * x_high_weight * (label_maps[layers, y_high, x_high] == ids)
        for sample in row:
            total += sample
    return total
