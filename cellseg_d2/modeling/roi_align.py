"""RoIAlign (He et al., ICCV 2017) on the CPU, as a product with a sparse matrix.

A bin is a weighted sum of a few pixels: of 4 where samples are one a bin, of 9 where they are two
by two. With features as rows of channels, one for each pixel, that is what ``embedding_bag``
computes, with all channels of a row at a time and on all cores. The gradient is the product with
the transposed matrix, computed the same way: each pixel sums the bins that saw it, in a fixed
order. torchvision's kernel adds to one channel of one pixel at a time, on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import scipy.sparse
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from ..structures.roi_samples import sample_axis


def roi_align_pyramid(
    features: Sequence[torch.Tensor],
    scales: Sequence[float],
    rois: torch.Tensor,
    levels: torch.Tensor,
    output_size: tuple[int, int],
    sampling_ratio: int = 0,
) -> torch.Tensor:
    """Pool each RoI from one level of a feature pyramid, on the CPU.

    Equal to ``torchvision.ops.roi_align(aligned=True)`` on each level but for rounding, and so is
    the gradient with respect to the features. The same call gives the same bits. Half precision is
    computed in full, and the RoIs' coordinates are never rounded to it.

    For 512 RoIs around cells on 4x64x56x56 features and one core, the gradient takes a sixteenth of
    the time of torchvision's, and pooling itself less than half (``tools/benchmark.py``).

    Args:
        features: of each level (B, C, H, W), floating point, in any memory format.
        scales: of each level, pixels of it over pixels of the image.
        rois: (K, 5), index of the image and XYXY in pixels of it, finite, x1 and y1 not below x0
            and y0. Bins outside the image give zeros, and so do RoIs without area unless
            ``sampling_ratio`` is set.
        levels: (K,) int64, the level of each RoI.
        output_size: P and Q, bins of an RoI down and across.
        sampling_ratio: samples a bin along an axis; 0 for as many as keep them a pixel or less
            apart.

    Returns:
        (K, C, P, Q) in the features' dtype and in the memory format ``torch.channels_last``.
    """
    dtype = torch.promote_types(features[0].dtype, torch.float32)
    sizes = torch.tensor([feature.shape[2:] for feature in features])[levels]
    pixels = [feature[:, 0].numel() for feature in features]
    first = torch.tensor([0, *pixels]).cumsum(0)[levels]
    first += rois[:, 0].long() * sizes.prod(dim=1)
    corners = rois[:, [2, 1, 4, 3]].to(dtype)
    corners = corners * torch.tensor(scales, dtype=dtype)[levels, None] - 0.5
    low, extents = corners[:, :2], corners[:, 2:] - corners[:, :2]
    pooling = _build_pooling(first, low, extents, sizes, output_size, sampling_ratio)
    return _Pool.apply(pooling, output_size, *features)


class _Bags(NamedTuple):
    """A sparse matrix by rows, as ``embedding_bag`` takes it.

    Attributes:
        columns: (E,) int32, of each element.
        weights: (E,) float32 or float64, its value.
        ends: (R + 1,) int32; the elements of row r are those from ``ends[r]`` to ``ends[r + 1]``.
    """

    columns: torch.Tensor
    weights: torch.Tensor
    ends: torch.Tensor

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply with a dense matrix, (number of columns, C), of the weights' dtype."""
        if not len(self.columns):
            return rows.new_zeros(len(self.ends) - 1, rows.shape[1])
        return F.embedding_bag(
            self.columns,
            rows,
            self.ends,
            mode="sum",
            per_sample_weights=self.weights,
            include_last_offset=True,
        )

    def transposed(self, num_columns: int) -> _Bags:
        """Return the transposed matrix, the elements of a row in the order of the rows here."""
        parts = (self.weights.numpy(), self.columns.numpy(), self.ends.numpy())
        # Counts and places the elements, in a quarter of the time of PyTorch's sort.
        by_column = scipy.sparse.csr_array(parts, (len(self.ends) - 1, num_columns)).tocsc()
        columns, weights, ends = by_column.indices, by_column.data, by_column.indptr
        return _Bags(*map(torch.from_numpy, (columns, weights, ends)))


class _Pooling(NamedTuple):
    """The matrix that pools, and the RoIs that its rows belong to.

    Attributes:
        bags: a row for each bin of each RoI, a column for each pixel of all levels and images.
        order: (K,) int64, the RoI of each P·Q rows.
    """

    bags: _Bags
    order: torch.Tensor


def _build_pooling(
    first: torch.Tensor,
    low: torch.Tensor,
    extents: torch.Tensor,
    sizes: torch.Tensor,
    output_size: tuple[int, int],
    sampling_ratio: int,
) -> _Pooling:
    """Write down which pixels each bin sums, and with which weights.

    Args:
        first: (K,) int64, the first pixel of the RoI's image and level.
        low: (K, 2) y, x of the RoI's corner in pixels, whose centers are at whole numbers.
        extents: (K, 2) height and width of the RoI in pixels.
        sizes: (K, 2) int64, height and width of its level.
        output_size: see ``roi_align_pyramid``.
        sampling_ratio: likewise.
    """
    # RoIs of about one size have as many pixels a bin, and are written down together.
    samples = (extents / torch.tensor(output_size)).ceil().amax(dim=1)
    # A fixed number of samples falls on one point where an RoI has no extent.
    empty = extents < 0 if sampling_ratio else extents <= 0
    samples = samples.clamp(min=1).masked_fill(empty.any(dim=1), 0)
    order, columns, weights, counts = [], [], [], []
    for number in samples.unique().tolist():
        group = torch.nonzero(samples == number)[:, 0]
        order.append(group)
        num_bags = len(group) * output_size[0] * output_size[1]
        if number == 0:
            counts.append(torch.zeros(num_bags, dtype=torch.int32))
            continue
        (y, y_weights), (x, x_weights) = (
            _bins_of_axis(
                low[group, axis], extents[group, axis], bins, sizes[group, axis], sampling_ratio
            )
            for axis, bins in enumerate(output_size)
        )
        y = first[group, None, None] + y * sizes[group, 1, None, None]
        columns.append(_outer(torch.add, y.int(), x.int()))
        weights.append(_outer(torch.mul, y_weights, x_weights))
        in_bag = y.shape[2] * x.shape[2]
        counts.append(torch.full((num_bags,), in_bag, dtype=torch.int32))
    nothing = torch.zeros(1, dtype=torch.int32)
    bags = _Bags(
        torch.cat([nothing[:0], *columns]),
        torch.cat([low.new_zeros(0), *weights]),
        torch.cat([nothing, *counts]).cumsum(0, dtype=torch.int32),
    )
    return _Pooling(bags, torch.cat([first[:0], *order]))


def _outer(combine: Callable[..., torch.Tensor], y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Combine (n, P, T) and (n, Q, U) to (n, P, Q, T, U), flat."""
    combined = y.new_empty(*y.shape[:2], *x.shape[1:2], y.shape[2], x.shape[2])
    # All at once, the inner loop would be over U alone, 2 numbers or 3: five times as slow.
    for t in range(y.shape[2]):
        for u in range(x.shape[2]):
            combine(y[:, :, None, t], x[:, None, :, u], out=combined[..., t, u])
    return combined.flatten()


def _bins_of_axis(
    low: torch.Tensor, extents: torch.Tensor, num_bins: int, lengths: torch.Tensor, ratio: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add up the samples of each bin of n RoIs along one axis, pixel by pixel.

    Returns:
        (n, M, T) int64, the pixels of each bin, and their weights in the bin's mean.
    """
    samples = sample_axis(low, extents, num_bins, lengths, ratio)
    begin = samples.low[0]
    pixels = torch.cat([samples.low, samples.high]) - begin
    weights = torch.cat([samples.low_weight, samples.high_weight])
    # Samples that an RoI does not have lie past its end; without weight, they may go anywhere.
    pixels *= weights > 0
    width = int(pixels.max()) + 1
    summed = weights.new_zeros(*begin.shape, width)
    summed.scatter_add_(2, pixels.permute(1, 2, 0), weights.permute(1, 2, 0))
    pixels = begin[:, :, None] + torch.arange(width)
    return (
        pixels.minimum(lengths[:, None, None] - 1),
        summed / samples.per_bin[:, None, None],
    )


class _Pool(torch.autograd.Function):
    """The product, from (B, C, H, W) features to (K, C, P, Q) bins."""

    @staticmethod
    def forward(
        ctx: Any, pooling: _Pooling, output_size: tuple[int, int], *features: torch.Tensor
    ) -> torch.Tensor:
        bags, order = pooling
        ctx.save_for_backward(*bags, order)
        ctx.levels = [_Level.of(feature) for feature in features]
        pixels = torch.cat([_to_rows(feature, bags.weights.dtype) for feature in features])
        bins = bags.times(pixels).to(features[0].dtype)
        bins = bins.view(len(order), *output_size, features[0].shape[1])
        if (order.diff() < 0).any():
            bins = bins.index_select(0, order.argsort())
        return bins.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *parts, order = ctx.saved_tensors
        bags = _Bags(*parts)
        levels: list[_Level] = ctx.levels
        by_pixel = bags.transposed(sum(level.num_pixels for level in levels))
        bins = gradient.shape[2] * gradient.shape[3]
        row_of_bag = (order[:, None] * bins + torch.arange(bins)).flatten().int()
        by_pixel = by_pixel._replace(columns=row_of_bag[by_pixel.columns])
        rows = by_pixel.times(_to_rows(gradient, bags.weights.dtype))
        split = rows.split([level.num_pixels for level in levels])
        return (
            None,
            None,
            *(level.from_rows(part) for level, part in zip(levels, split, strict=True)),
        )


class _Level(NamedTuple):
    """What a feature map looks like."""

    shape: torch.Size
    dtype: torch.dtype
    memory_format: torch.memory_format

    @classmethod
    def of(cls, feature: torch.Tensor) -> _Level:
        plain = feature.is_contiguous()
        return cls(
            feature.shape,
            feature.dtype,
            torch.contiguous_format if plain else torch.channels_last,
        )

    @property
    def num_pixels(self) -> int:
        return self.shape[0] * self.shape[2] * self.shape[3]

    def from_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Turn (B·H·W, C) into a tensor like the feature map."""
        images, channels, height, width = self.shape
        image = rows.view(images, height, width, channels).permute(0, 3, 1, 2)
        # One format for all that is added to the gradient of these features.
        return image.to(self.dtype).contiguous(memory_format=self.memory_format)


def _to_rows(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn (N, C, H, W) into (N·H·W, C); a copy only where the memory format or dtype asks."""
    return x.permute(0, 2, 3, 1).to(dtype).reshape(-1, x.shape[1])
