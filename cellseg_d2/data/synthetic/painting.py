"""Tissue as amounts of two stains per pixel, and the light that passes through it.

The stains, haematoxylin and eosin, absorb light by the Beer-Lambert law. Each cell is painted in a
window of its own.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .arrays import BAND_ROWS, Float, clip_window
from .cells import KINDS, Cell

# Absorbance of red, green and blue light by one unit of haematoxylin and of eosin: after Ruifrok &
# Johnston 2001, and after Macenko et al. 2009 (ISBI), whose scanner saw a pinker eosin. The stains
# of an image lie between the two.
RUIFROK_STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))
MACENKO_STAINS = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))

_EDGE = 2.0  # pixels around a cell in which its outline fades

Stains = tuple[Float, Float]


def paint_stroma(rng: np.random.Generator, size: tuple[int, int]) -> Stains:
    """Paint wavy collagen bundles and clefts: haematoxylin and eosin, float32 (H, W) each."""
    haematoxylin, eosin = np.empty(size, np.float32), np.empty(size, np.float32)
    noise = rng.standard_normal((3, 256, 256)).astype(np.float32)
    angle = rng.uniform(0, math.pi)
    density = rng.uniform(0.30, 0.40)

    def sample(layer: int, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Float:
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        wrap = cv2.BORDER_WRAP
        return np.asarray(cv2.remap(noise[layer], x, y, cv2.INTER_CUBIC, borderMode=wrap))

    columns = np.arange(size[1], dtype=np.float32)[None, :]
    for start in range(0, size[0], BAND_ROWS):
        rows = np.arange(start, min(start + BAND_ROWS, size[0]), dtype=np.float32)[:, None]
        x, y = np.broadcast_arrays(columns, rows)
        along = columns * np.float32(math.cos(angle)) + rows * np.float32(math.sin(angle))
        across: Float = rows * np.float32(math.cos(angle)) - columns * np.float32(math.sin(angle))
        across += 22 * sample(0, x / 95, y / 95)
        fibres = 0.6 * sample(2, along / 60, across / 7) + 0.6 * sample(1, along / 30, across / 2.4)
        fibres += 0.35 * sample(0, along / 11, across / 1.3)
        clefts = 1 / (1 + np.exp(-5 * (sample(1, along / 70, across / 15) - 1.1)))
        clouds = sample(2, x / 130, y / 130)
        band = slice(start, start + len(rows))
        eosin[band] = np.maximum(density + 0.09 * fibres + 0.05 * clouds, 0.03) * (1 - 0.8 * clefts)
        haematoxylin[band] = np.maximum(0.07 + 0.02 * fibres - 0.02 * clouds, 0) * (1 - clefts)
    return haematoxylin, eosin


def paint_cells(rng: np.random.Generator, planes: Stains, cells: list[Cell], scale: float) -> None:
    """Paint all surroundings into the stain planes, then all cells in the order of placement."""
    if not cells:
        return
    side = 64 + 2 * max(cell.half_side(_EDGE) for cell in cells)
    white = rng.standard_normal((2, side, side)).astype(np.float32)
    textures = [
        cv2.GaussianBlur(w, (0, 0), s * scale) for w, s in zip(white, (0.8, 2.1), strict=True)
    ]
    fine, coarse = (np.asarray(t / t.std(), np.float32) for t in textures)
    for cell in cells:
        _paint_halo(planes, cell, scale)
    for cell in cells:
        _paint_cell(rng, planes, cell, scale, fine, coarse)


def _blend(plane: Float, target: Float | float, alpha: Float) -> None:
    plane += alpha * (target - plane)


def _paint_halo(planes: Stains, cell: Cell, scale: float) -> None:
    """Paint cytoplasm around the large cells, a pale gap around the small dark ones."""
    kind = KINDS[cell.category]
    width = kind.halo * kind.size * scale
    corner, along, across = cell.local_axes(width)
    here, there = clip_window(corner, along.shape[0], planes[0].shape)
    distance = cell.distance(along[there], across[there])
    alpha = 0.75 * np.clip(1.3 * (1 + distance / width), 0, 1)
    for plane, stain in zip(planes, kind.halo_stains, strict=True):
        _blend(plane[here], stain, alpha)


def _paint_cell(
    rng: np.random.Generator,
    planes: Stains,
    cell: Cell,
    scale: float,
    fine: Float,
    coarse: Float,
) -> None:
    kind = KINDS[cell.category]
    corner, along, across = cell.local_axes(_EDGE)
    oy, ox = (int(v) for v in rng.integers(0, fine.shape[0] - along.shape[0] + 1, 2))
    spots = rng.uniform(-0.45, 0.45, (int(rng.integers(kind.nucleoli[0], kind.nucleoli[1] + 1)), 2))
    here, there = clip_window(corner, along.shape[0], planes[0].shape)
    along, across = along[there], across[there]
    distance = cell.distance(along, across)
    patch = (slice(oy, None), slice(ox, None))
    blue = kind.fine * fine[patch][there] + kind.coarse * coarse[patch][there]
    depth = distance - 1.0
    blue += kind.rim * np.exp(-0.5 * (depth / (0.05 * kind.size * scale)) ** 2)
    blue += kind.haematoxylin * cell.shade
    red = np.full_like(blue, kind.eosin)
    for spot in spots:
        away = (along - spot[0] * cell.major) ** 2 + (across - spot[1] * cell.minor) ** 2
        nucleolus = np.exp(-0.5 * away / (0.062 * kind.size * scale) ** 2)
        blue += 0.9 * nucleolus
        red += 0.35 * nucleolus
    alpha = np.clip(0.5 + distance / 1.6, 0, 1)
    # The pale line along the outline, which shows where touching cells meet.
    gap = 0.4 * np.exp(-0.5 * ((distance + 1.0) / 0.8) ** 2)
    for plane, stain, pale in zip(planes, (np.maximum(blue, 0.1), red), (0.05, 0.2), strict=True):
        window = plane[here]
        under = 0.12 * window  # sections are thick: what lies below shines through
        _blend(window, pale, gap)
        _blend(window, stain + under, alpha)


def to_light(rng: np.random.Generator, planes: Stains) -> npt.NDArray[np.uint8]:
    """Turn stain amounts into what a camera sees: optics, a tint of the stains, sensor noise.

    Args:
        rng: the source of blur, tint and noise.
        planes: haematoxylin and eosin, (H, W) each; blurred in place.

    Returns:
        uint8 RGB (H, W, 3).
    """
    strength = rng.uniform(0.88, 1.12, 2)
    between = rng.uniform(0.3, 0.65)
    vectors = (1 - between) * np.array(RUIFROK_STAINS) + between * np.array(MACENKO_STAINS)
    vectors = np.maximum(vectors + 0.012 * rng.standard_normal((2, 3)), 0)
    vectors *= (strength / np.linalg.norm(vectors, axis=1))[:, None]
    blur, noise = rng.uniform(0.55, 0.85), rng.uniform(2.0, 3.5)
    lamp = np.array([rng.uniform(243, 250), rng.uniform(240, 247), rng.uniform(243, 250)])
    for plane in planes:
        cv2.GaussianBlur(plane, (0, 0), blur, dst=plane)
    image = np.empty((*planes[0].shape, 3), dtype=np.uint8)
    for start in range(0, len(image), BAND_ROWS):
        band = slice(start, start + BAND_ROWS)
        grain = rng.standard_normal(image[band].shape, dtype=np.float32)
        for channel in range(3):
            absorbed = np.float32(vectors[0, channel]) * planes[0][band]
            absorbed += np.float32(vectors[1, channel]) * planes[1][band]
            light = np.float32(lamp[channel]) * np.exp(-absorbed)
            light += np.float32(noise) * grain[..., channel]
            image[band, :, channel] = np.clip(light + 0.5, 0, 255).astype(np.uint8)
    return image
