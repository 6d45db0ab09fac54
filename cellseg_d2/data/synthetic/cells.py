"""How the cells of each class look, and the outline of one cell."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .arrays import Float


@dataclass(frozen=True)
class Kind:
    """How the cells of one class look; lengths in pixels at scale 1, stains in absorbance."""

    size: float  # median of the square root of the area
    aspect: tuple[float, float]
    roughness: float  # relative standard deviation of the outline's radius
    bend: float
    taper: float  # how pointed the ends are; 0 is an ellipse
    haematoxylin: float
    eosin: float
    rim: float  # extra haematoxylin just inside the outline
    fine: float  # contrast of fine and of coarse chromatin
    coarse: float
    nucleoli: tuple[int, int]
    halo: float  # width of the surroundings, as a share of `size`
    halo_stains: tuple[float, float]


# The sizes are the medians of the released data set. Epithelial-like, lymphocyte-like,
# spindle-like, and giant cells with clumped chromatin.
KINDS = (
    Kind(
        size=26.0,
        aspect=(1.15, 1.55),
        roughness=0.035,
        bend=0.0,
        taper=0.0,
        haematoxylin=0.78,
        eosin=0.24,
        rim=0.60,
        fine=0.10,
        coarse=0.13,
        nucleoli=(1, 2),
        halo=0.42,
        halo_stains=(0.20, 0.46),
    ),
    Kind(
        size=17.0,
        aspect=(1.00, 1.20),
        roughness=0.025,
        bend=0.0,
        taper=0.0,
        haematoxylin=2.10,
        eosin=0.30,
        rim=0.15,
        fine=0.26,
        coarse=0.34,
        nucleoli=(0, 0),
        halo=0.16,
        halo_stains=(0.04, 0.13),
    ),
    Kind(
        size=24.0,
        aspect=(2.40, 3.20),
        roughness=0.020,
        bend=0.12,
        taper=0.5,
        haematoxylin=1.30,
        eosin=0.42,
        rim=0.22,
        fine=0.18,
        coarse=0.08,
        nucleoli=(0, 0),
        halo=0.10,
        halo_stains=(0.05, 0.30),
    ),
    Kind(
        size=45.0,
        aspect=(1.05, 1.40),
        roughness=0.045,
        bend=0.0,
        taper=0.0,
        haematoxylin=0.95,
        eosin=0.52,
        rim=0.45,
        fine=0.18,
        coarse=0.40,
        nucleoli=(2, 4),
        halo=0.26,
        halo_stains=(0.12, 0.62),
    ),
)


@dataclass
class Cell:
    """The outline of one cell: an ellipse with harmonics on its radius, bent, rotated, placed."""

    category: int
    major: float  # semi-axes in pixels
    minor: float
    angle: float
    bend: float
    taper: float
    amplitudes: Float  # of the harmonics 2, 3, 4, 5
    phases: Float
    shade: float
    centre: tuple[float, float] = (0.0, 0.0)  # y, x

    def radius(self, direction: float) -> float:
        """Return the unbent ellipse's radius along a direction in radians."""
        turn = direction - self.angle
        return (
            self.major
            * self.minor
            / math.hypot(self.minor * math.cos(turn), self.major * math.sin(turn))
        )

    def half_side(self, margin: float) -> int:
        """Return the pixels from the centre to the edge of a window that holds cell and margin."""
        reach = 1 + float(np.abs(self.amplitudes).sum()) + abs(self.bend)
        return math.ceil(reach * self.major + margin) + 1

    def local_axes(self, margin: float) -> tuple[tuple[int, int], Float, Float]:
        """Return the window around the cell: top left corner and (n, n) offsets along both axes."""
        half = self.half_side(margin)
        row, column = math.floor(self.centre[0]), math.floor(self.centre[1])
        steps = np.arange(-half, half + 1, dtype=np.float32)
        y = (steps - (self.centre[0] - row))[:, None]
        x = (steps - (self.centre[1] - column))[None, :]
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        along = (x * cosine + y * sine).astype(np.float32)
        across = (y * cosine - x * sine).astype(np.float32)
        across += self.bend / self.major * along**2 - 0.25 * self.bend * self.major
        return (row - half, column - half), along, across

    def distance(self, along: Float, across: Float) -> Float:
        """Estimate the distance in pixels to the outline, positive inside, to first order."""
        u, v = along / self.major, across / self.minor
        narrowing = 1 + self.taper * u * u
        w = v * narrowing
        rho = np.sqrt(u * u + w * w) + 1e-6
        phi = np.arctan2(w, u)
        radius = np.ones_like(rho)
        for k, (amplitude, phase) in enumerate(zip(self.amplitudes, self.phases, strict=True), 2):
            radius += amplitude * np.cos(k * phi + phase)
        slope_along = u * (1 + 2 * self.taper * v * w) / self.major
        slope_across = w * narrowing / self.minor
        slope = np.sqrt(slope_along**2 + slope_across**2) / rho + 1e-6
        return ((radius - rho) / slope).astype(np.float32)


def draw_cell(rng: np.random.Generator, category: int, scale: float) -> Cell:
    """Draw the form of a cell of class ``category``, 0 to 3; its centre is left at the origin."""
    kind = KINDS[category]
    root_area = kind.size * scale * math.exp(0.11 * float(np.clip(rng.standard_normal(), -2, 2)))
    aspect = rng.uniform(*kind.aspect)
    # The area of u^2 + v^2 (1 + t u^2)^2 < 1 is 2 pi (sqrt(1 + t) - 1) / t, and pi for t = 0.
    shape_area = (
        2 * math.pi * (math.sqrt(1 + kind.taper) - 1) / kind.taper if kind.taper else math.pi
    )
    minor = root_area / math.sqrt(shape_area * aspect)
    decay = np.array([1.0, 0.8, 0.5, 0.4])
    return Cell(
        category=category,
        major=minor * aspect,
        minor=minor,
        angle=rng.uniform(0, math.pi),
        bend=kind.bend * rng.uniform(-1, 1),
        taper=kind.taper,
        amplitudes=(kind.roughness * decay * np.clip(rng.standard_normal(4), -2, 2)).astype(
            np.float32
        ),
        phases=rng.uniform(0, 2 * math.pi, 4).astype(np.float32),
        shade=rng.uniform(0.84, 1.16),
    )
