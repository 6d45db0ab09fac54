"""Images of a report, with their cells as paths that the page can show and hide."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...data.config_reader import image_reader
from ...export.polygons import mask_polygons
from ...export.rle_counts import decode_crop
from .sources import RunSources
from .tables import ranked_images, ranking_score

_MOST_PIXELS_A_SIDE = 1000
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class CellPath:
    """One cell's outline.

    Attributes:
        category: class, from 0.
        path: data of an SVG path along the edges of the mask's pixels; its holes turn the other way
            round.
        score: of a prediction; of the ground truth that of the prediction that finds the cell, None
            where none does.
        found: whether it has a counterpart.
    """

    category: int
    path: str
    score: float | None
    found: bool


@dataclass(frozen=True)
class Picture:
    """One image of a report.

    Attributes:
        name: of the image.
        rank: what it stands for, such as "worst 1".
        score: by which it was chosen, in words.
        height: of the image in pixels, the unit of the paths.
        width: likewise.
        source: the image as a data URI, made smaller where it is large.
        truth: cells of the ground truth.
        predicted: cells predicted, the surest last, to be drawn on top.
    """

    name: str
    rank: str
    score: str
    height: int
    width: int
    source: str
    truth: list[CellPath]
    predicted: list[CellPath]


def choose_images(run: RunSources, limit: int) -> list[tuple[dict[str, Any], str]]:
    """Choose the worst and the best images, as many of the one as of the other.

    Args:
        run: whose images are ranked (``ranked_images``).
        limit: how many to choose, at least 1; of an odd number one more of the worst.

    Returns:
        The images' details and ranks ("worst 1", …, then "best 1", …). An image without a score,
        which has no cell, is chosen only where none has one.
    """
    key = ranking_score(run)
    images = ranked_images(run)
    scored = [row for row in images if row[key] is not None] or images
    count = min(limit, len(scored))
    worst = scored[: count - count // 2]
    best = scored[::-1][: count // 2]
    return [
        (row, f"{word} {place}")
        for word, rows in (("worst", worst), ("best", best))
        for place, row in enumerate(rows, 1)
    ]


def draw_picture(
    run: RunSources,
    row: dict[str, Any],
    rank: str,
    predictions: Sequence[dict[str, Any]],
    matches: NDArray[np.int64],
) -> Picture:
    """Read an image and trace its cells.

    Args:
        run: that found them.
        row: the image's details.
        rank: what it stands for.
        predictions: of the image, to be drawn.
        matches: of the predictions, see ``match_predictions``.

    Raises:
        CellDataError: for an image that cannot be read.
    """
    item = run.dicts[row["image_id"]]
    annotations = item["annotations"]
    size = (item["height"], item["width"])
    image = image_reader(run.cfg)(item["file_name"])
    found_at: list[float | None] = [None] * len(annotations)
    for prediction, match in zip(predictions, matches.tolist(), strict=True):
        if match >= 0:
            found_at[match] = prediction["score"]
    truth = [
        CellPath(a["category_id"], mask_path(a["segmentation"], size), score, score is not None)
        for a, score in zip(annotations, found_at, strict=True)
    ]
    predicted = [
        CellPath(p["category_id"], mask_path(p["segmentation"], size), p["score"], match >= 0)
        for p, match in zip(predictions, matches.tolist(), strict=True)
    ]
    key = ranking_score(run)
    score = "no cell" if row[key] is None else f"{key} {row[key]:.1f}"
    predicted.sort(key=lambda cell: cell.score or 0.0)
    return Picture(row["name"], rank, score, *size, data_uri(image), truth, predicted)


def mask_path(rle: dict[str, Any], size: tuple[int, int]) -> str:
    """Trace a mask exactly (``mask_polygons``); its edges are all horizontal or vertical.

    Args:
        rle: its compressed RLE.
        size: height and width of the image in pixels.

    Returns:
        Data of an SVG path in pixels of the image, "" for a mask without a pixel.
    """
    rings = [ring for rings in mask_polygons(*decode_crop(rle["counts"], size)) for ring in rings]
    return "".join(_ring_path(ring) for ring in rings)


def _ring_path(ring: NDArray[np.int64]) -> str:
    steps = np.diff(ring, axis=0).tolist()
    turns = "".join(f"h{dx}" if dx else f"v{dy}" for dx, dy in steps)
    return f"M{ring[0, 0]} {ring[0, 1]}{turns}z"


def data_uri(image: NDArray[np.uint8]) -> str:
    """Return an image as a JPEG in a data URI, its longer side 1,000 pixels at most.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((_MOST_PIXELS_A_SIDE, _MOST_PIXELS_A_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # Colour at full resolution: cells are a few pixels wide.
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
