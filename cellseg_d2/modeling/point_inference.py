"""PointRend's adaptive subdivision (Kirillov et al., CVPR 2020, section 3.1), made fast.

Upstream refines the masks of all classes and keeps those of one. Here

* only the mask of the class that was found is interpolated and refined;
* the part of the first layer that looks at the feature maps is applied to the maps, not to points
  sampled from them: both are linear, and a map has fewer pixels than its cells have points;
* on a CPU so few RoIs are refined at a time that the features of their points stay in its cache.
"""

from __future__ import annotations

import itertools

import torch
from detectron2.layers import interpolate
from detectron2.projects.point_rend.point_features import (
    generate_regular_grid_point_coords,
    get_uncertain_point_coords_on_grid,
    point_sample,
    point_sample_fine_grained_features,
)
from detectron2.projects.point_rend.point_head import StandardPointHead
from detectron2.structures import Boxes
from torch.nn import functional as F

BYTES_AT_A_TIME = {"cpu": 2 << 20, "cuda": 80 << 20}
"""Of one layer's features at the points of the RoIs that are refined together: on a CPU about what
a core's cache holds, elsewhere little enough for thousands of cells."""


class PointRefiner:
    """Predicts the masks of the RoIs of one image with the layers of a ``StandardPointHead``.

    The features of all points of some RoIs are the columns of one matrix. Its rows are those of a
    layer, a row of ones, to which a layer's bias belongs, and the coarse predictions.
    """

    def __init__(
        self, head: StandardPointHead, features: list[torch.Tensor], scales: list[float]
    ) -> None:
        """Apply the first layer to the feature maps.

        Args:
            head: the layers.
            features: of one image, (1, C, H, W) each.
            scales: pixels of each map for one of the image.
        """
        channels = [feature.shape[1] for feature in features]
        self._width = head.fc_layers[0].out_channels
        first = head.fc_layers[0].weight[..., 0]
        *of_maps, of_coarse = first.tensor_split(list(itertools.accumulate(channels)), dim=1)
        self._maps = [
            F.conv2d(feature, weight[..., None, None])
            for feature, weight in zip(features, of_maps, strict=True)
        ]
        self._scales = scales
        # What autocast computes in, or the features' own.
        dtype = self._maps[0].dtype
        self._first = torch.cat([head.fc_layers[0].bias[:, None], of_coarse], dim=1).to(dtype)
        self._layers = []
        for layer in (*head.fc_layers[1:], head.predictor):
            own, of_coarse = layer.weight[..., 0].tensor_split([self._width], dim=1)
            self._layers.append(torch.cat([own, layer.bias[:, None], of_coarse], dim=1).to(dtype))

    def refine(
        self,
        coarse: torch.Tensor,
        boxes: Boxes,
        classes: torch.Tensor,
        *,
        resolution: int,
        steps: int,
        num_points: int,
    ) -> torch.Tensor:
        """Predict a mask for each RoI.

        Args:
            coarse: (N, C, m, m) logits.
            boxes: N.
            classes: (N,) int64 in [0, C), or of any value where C is 1.
            resolution: points in a row of the regular grid to begin with.
            steps: times to double the resolution.
            num_points: points to predict in each step, those that interpolation leaves least sure.

        Returns:
            (N, 1, M, M) logits of each RoI's class, M = ``resolution * 2**steps``.
        """
        device = coarse.device
        side = resolution * 2**steps
        masks = coarse.new_empty(len(boxes), 1, side, side)
        rows = self._width + 1 + coarse.shape[1]
        points_each = max(resolution**2, num_points if steps else 0)
        roi_bytes = rows * points_each * self._first.element_size()
        budget = BYTES_AT_A_TIME.get(device.type, BYTES_AT_A_TIME["cuda"])
        at_a_time = max(budget // roi_bytes, 1)
        shape = (2, rows * points_each * min(at_a_time, len(boxes)))
        # Memory that is asked for anew for each part costs as much as the arithmetic.
        work = torch.empty(shape, dtype=self._first.dtype, device=device)
        for start in range(0, len(boxes), at_a_time):
            part = slice(start, start + at_a_time)
            rois = coarse[part], boxes[part], classes[part]
            points = generate_regular_grid_point_coords(len(rois[0]), resolution, device)
            logits = self._predict(points, *rois, work)
            logits = logits.view(-1, 1, resolution, resolution)
            for _ in range(steps):
                logits = interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
                at, points = get_uncertain_point_coords_on_grid(-logits.abs(), num_points)
                logits.view(len(logits), -1).scatter_(1, at, self._predict(points, *rois, work))
            masks[part] = logits
        return masks

    def _predict(
        self,
        points: torch.Tensor,
        coarse: torch.Tensor,
        boxes: Boxes,
        classes: torch.Tensor,
        work: torch.Tensor,
    ) -> torch.Tensor:
        """Predict points (N, P, 2), x and y in [0, 1] of their boxes: (N, P) logits.

        ``work`` is (2, n), for two matrices.
        """
        count, points_each = points.shape[:2]
        rows = self._width + 1 + coarse.shape[1]
        size = rows * count * points_each
        x, y = (memory[:size].view(rows, count * points_each) for memory in work)
        coarse = point_sample(coarse, points, align_corners=False)
        for matrix in (x, y):
            matrix[self._width] = 1
            matrix[self._width + 1 :].view(-1, count, points_each).copy_(coarse.transpose(0, 1))
        torch.mm(self._first, x[self._width :], out=x[: self._width])
        for feature, scale in zip(self._maps, self._scales, strict=True):
            fine, _ = point_sample_fine_grained_features([feature], [scale], [boxes], points)
            x[: self._width] += fine.transpose(0, 1).flatten(1)
        for layer in self._layers[:-1]:
            x[: self._width].relu_()
            torch.mm(layer, x[: layer.shape[1]], out=y[: self._width])
            x, y = y, x
        x[: self._width].relu_()
        predictor = self._layers[-1]
        logits = (predictor @ x[: predictor.shape[1]]).view(-1, count, points_each)
        if len(logits) == 1:
            return logits[0]
        return logits[classes, torch.arange(count, device=classes.device)]
