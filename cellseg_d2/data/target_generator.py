"""Centre and boundary maps of cells, made from label maps: targets of the two auxiliary heads.

A pure callable that the mapper runs on the augmented label maps, so that the targets follow every
augmentation. Nothing here is done once per instance: for 600 cells in 1000x1000 pixels it takes
16 ms, one dilation and erosion per cell 9 s (``tools/benchmark.py targets``).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch

from ..structures import LabelMasks

# Standard deviations after which the Gaussian ends, as in scipy.ndimage.gaussian_filter.
_TRUNCATE = 4.0


class CenterBoundaryTargets:
    """Makes the centre map and the boundary map of an image.

    The instances of all classes are merged into one map, each under a number of its own. Where
    classes overlap the later class covers the earlier one, so that the rare ones, which come last,
    stay whole; an instance that is covered completely has neither centre nor boundary.

    - Centre map: 1 at each instance's centre of mass, truncated to whole pixels, blurred by a
      Gaussian (mirrored at the image's border, cut off after 4 sigma), divided by its maximum.
    - Boundary map: for each instance its dilation XOR its erosion by one step with 4 neighbours;
      1 where that holds for any instance. What lies outside the image is background, so that an
      instance at the image's border has a boundary there.

    Args:
        sigma: standard deviation of the Gaussian in pixels.

    Raises:
        ValueError: if ``sigma`` is not above 0.
    """

    def __init__(self, sigma: float = 5.0) -> None:
        if not sigma > 0:
            raise ValueError(f"the Gaussian of a centre needs a sigma above 0, not {sigma}")
        self.sigma = sigma

    def __call__(self, masks: LabelMasks) -> dict[str, torch.Tensor]:
        """Make the maps of one image.

        Args:
            masks: the image's instances, on the CPU; layers are classes in ascending order. Ids of
                the label maps that are no instance here count as background.

        Returns:
            ``center_map`` (H, W) float32 in [0, 1], with the maximum 1, or all 0 without instances,
            and ``boundary_map`` (H, W) uint8, 0 or 1.
        """
        merged, centers = merge_layers(masks)
        return {
            "center_map": torch.from_numpy(center_map(centers, masks.image_size, self.sigma)),
            "boundary_map": torch.from_numpy(boundary_map(merged)),
        }


def merge_layers(masks: LabelMasks) -> tuple[np.ndarray, np.ndarray]:
    """Draw all instances into one label map, a later layer over an earlier one, and find centres.

    Args:
        masks: N instances on the CPU.

    Returns:
        The merged map, (H, W) int32, 0 or a number from 1 to N; and for the instances of which
        anything is seen in it, (K, 2) int64, y and x of the centre of mass, truncated.
    """
    layers, ids = masks.layers.numpy(), masks.ids.numpy()
    merged = np.zeros(masks.image_size, np.int32)
    centers = [np.zeros((0, 2), np.int64)]
    num_drawn = 0
    # From the top layer down, so that what is drawn stays, and an instance's runs are final.
    for layer in np.unique(layers)[::-1].tolist():
        mine = np.unique(ids[layers == layer])
        seen = masks.label_maps[layer].numpy() * (merged == 0)
        starts, lengths, found = _row_runs(seen)
        place = np.searchsorted(mine, found).clip(max=len(mine) - 1)
        # 1 + the place among this layer's instances, or 0.
        rank = np.where(mine[place] == found, 1 + place, 0)
        centers.append(_centers(starts, lengths, rank, merged.shape[1]))
        numbers = np.where(rank > 0, num_drawn + rank, 0).astype(np.int32)
        merged += np.repeat(numbers, lengths).reshape(merged.shape)
        num_drawn += len(mine)
    return merged, np.concatenate(centers)


def center_map(centers: np.ndarray, image_size: tuple[int, int], sigma: float) -> np.ndarray:
    """Blur one point an instance; see ``CenterBoundaryTargets``.

    Args:
        centers: (K, 2) integers, y and x in pixels.
        image_size: height and width in pixels.
        sigma: of the Gaussian, in pixels.

    Returns:
        (H, W) float32 in [0, 1]; equals SciPy's ``gaussian_filter`` to 1e-6.
    """
    points = np.zeros(image_size, np.float32)
    if not len(centers):
        return points
    points[centers[:, 0], centers[:, 1]] = 1
    width = 2 * int(_TRUNCATE * sigma + 0.5) + 1
    # OpenCV in float32 takes half of SciPy's time; its "reflect" repeats the edge, as SciPy's.
    blurred = cv2.GaussianBlur(points, (width, width), sigma, borderType=cv2.BORDER_REFLECT)
    return np.asarray(blurred / blurred.max())


def boundary_map(label_map: np.ndarray) -> np.ndarray:
    """Mark the boundaries of all instances at once; see ``CenterBoundaryTargets``.

    A pixel is in the dilation of some instance and not in its erosion exactly where one of its four
    neighbours, background outside the image, has another id than the pixel itself. Background next
    to an instance is dilated into; a pixel of an instance next to another id is eroded away.

    Args:
        label_map: (H, W) of any integer type.

    Returns:
        (H, W) uint8, 0 or 1.
    """
    boundary = np.zeros(label_map.shape, np.uint8)
    for ids, marks in ((label_map, boundary), (label_map.T, boundary.T)):
        differs = ids[1:] != ids[:-1]
        marks[1:] |= differs
        marks[:-1] |= differs
        marks[[0, -1]] |= ids[[0, -1]] != 0
    return boundary


def _centers(
    starts: np.ndarray, lengths: np.ndarray, numbers: np.ndarray, width: int
) -> np.ndarray:
    """Truncated centres of mass of runs in a map of ``width``, by number; 0 is background.

    Returns:
        (K, 2) int64, y and x, for each number that has a run, in ascending order.
    """
    y, x = np.divmod(starts, width)
    sums = lengths, lengths * y, lengths * x + lengths * (lengths - 1) // 2
    # The sums of 10^8 pixels' coordinates are far below 2^53: exact in bincount's float64.
    area, sum_y, sum_x = (np.bincount(numbers, s)[1:].astype(np.int64) for s in sums)
    there = area > 0
    return np.stack([sum_y, sum_x], axis=1)[there] // area[there, None]


def _row_runs(label_map: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs of equal ids along rows, background too, each within one row.

    Returns:
        First positions, lengths in pixels, and ids, in the order of position ``y * W + x``.
    """
    pixels = label_map.ravel()
    begins = np.empty(pixels.size, bool)
    np.not_equal(pixels[1:], pixels[:-1], out=begins[1:])
    begins[:: label_map.shape[1]] = True
    starts = np.flatnonzero(begins)
    return starts, np.diff(starts, append=pixels.size), pixels[starts]
