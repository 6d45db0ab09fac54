"""An inspected data set as figures for JSON and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .inspection import ImageFigures, Inspection, LayerFigures, channel_statistics

# COCO calls objects under 32² pixels small.
SMALL = 32
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def summarize(inspection: Inspection) -> dict[str, Any]:
    """Condenses an inspection to numbers and texts that JSON holds.

    Returns:
        - ``images``, ``test_images``: counts; ``height``, ``width``, ``test_height``,
          ``test_width``: [least, median, greatest] in pixels;
        - ``instances``, ``instances_per_image`` ([least, median, greatest]);
        - ``classes``: one dict for each class, and ``all``: ``instances``, ``images`` (that have
          one), ``sqrt_area`` (quantiles 5, 25, 50, 75 and 95 % in pixels), ``share_small`` (of
          instances with a square root of area below 32), ``share_touching``, ``split_ids``,
          ``dropped``; shares and quantiles are None without instances;
        - ``overlap_pixels``, ``images_with_overlap``;
        - ``channel_mean``, ``channel_std``: RGB over all annotated pixels, 0–255; None without;
        - ``per_image``: for each image ``name``, ``height``, ``width``, ``instances`` by class,
          ``missing_classes``, ``touching``, ``split_ids``, ``overlap_pixels``, ``channel_mean``;
        - ``faults``: ``path``, ``found``, ``expected``, ``advice``; ``ignored``: folders.
    """
    images = inspection.images
    by_class = [
        [image.layers[k] for image in images if k in image.layers]
        for k in range(inspection.num_classes)
    ]
    counts = [sum(len(layer.areas) for layer in image.layers.values()) for image in images]
    summary: dict[str, Any] = {
        "root": inspection.root,
        "images": len(images),
        "height": _range([image.height for image in images]),
        "width": _range([image.width for image in images]),
        "test_images": len(inspection.test_sizes),
        "test_height": _range([height for height, _ in inspection.test_sizes]),
        "test_width": _range([width for _, width in inspection.test_sizes]),
        "instances": sum(counts),
        "instances_per_image": _range(counts),
        "classes": [
            {"name": f"class{k + 1}", **_pool(layers)} for k, layers in enumerate(by_class)
        ],
        "all": _pool([layer for layers in by_class for layer in layers]),
        "overlap_pixels": sum(image.overlap for image in images),
        "images_with_overlap": sum(image.overlap > 0 for image in images),
        "channel_mean": None,
        "channel_std": None,
        "per_image": [_summarize_image(image, inspection.num_classes) for image in images],
        "faults": [
            {"path": f.path, "found": f.found, "expected": f.expected, "advice": f.advice}
            for f in inspection.faults
        ],
        "ignored": [str(path) for path in inspection.ignored],
    }
    # An image has one layer for each class, so "images" cannot be added up over layers.
    summary["all"]["images"] = sum(count > 0 for count in counts)
    if images:
        mean, std = channel_statistics(np.sum([image.histogram for image in images], axis=0))
        summary["channel_mean"] = _rounded(mean)
        summary["channel_std"] = _rounded(std)
    return summary


def format_report(summary: dict[str, Any]) -> str:
    """Lays out a summary as text; images come first, so that a long list ends with the totals."""
    parts = []
    class_names = [row["name"] for row in summary["classes"]]
    if summary["images"]:
        header = [
            "image",
            "height",
            "width",
            *class_names,
            "touching",
            "split",
            "overlap",
            "absent",
        ]
        rows = [
            [
                image["name"],
                *(_number(image[key]) for key in ("height", "width")),
                *(_number(count) for count in image["instances"]),
                *(_number(image[key]) for key in ("touching", "split_ids", "overlap_pixels")),
                " ".join(image["missing_classes"]) or "-",
            ]
            for image in summary["per_image"]
        ]
        parts += [_table(header, rows), ""]
        names = "class,instances,images,√area 5 %,25 %,50 %,75 %,95 %,small,touching,split,dropped"
        rows = [_class_row(row) for row in (*summary["classes"], {"name": "all", **summary["all"]})]
        parts += [_table(names.split(","), rows), ""]
    parts += [f"Root               {summary['root']}", f"Annotated images   {summary['images']:,}"]
    if summary["images"]:
        parts += [
            f"  height × width   {_span(summary['height'])} × {_span(summary['width'])} px",
            f"  instances        {summary['instances']:,}",
            f"  per image        {_span(summary['instances_per_image'])}",
            f"  overlap          {summary['overlap_pixels']:,} px of several classes,"
            f" in {summary['images_with_overlap']:,} images",
            f"  RGB mean         {_triple(summary['channel_mean'])}",
            f"  RGB std          {_triple(summary['channel_std'])}",
        ]
    parts.append(f"Test images        {summary['test_images']:,}")
    if summary["test_images"]:
        height, width = _span(summary["test_height"]), _span(summary["test_width"])
        parts.append(f"  height × width   {height} × {width} px")
    if summary["images"]:
        parts += [
            "",
            f"small: √area below {SMALL} px; touching: shares a pixel, a side or a corner with "
            "another instance;",
            "split: ids of several components; overlap: pixels of several classes; ranges are "
            "least / median / greatest.",
        ]
    if summary["ignored"]:
        parts += ["", f"Ignored folders    {len(summary['ignored'])}, without TIFFs"]
        parts += [f"  {path}" for path in summary["ignored"]]
    faults = summary["faults"]
    parts += ["", f"Faults             {len(faults):,}"]
    parts += [
        f"  {f['path']}: found {f['found']}; expected {f['expected']}; {f['advice']}"
        for f in faults
    ]
    return "\n".join(parts)


def _pool(layers: Sequence[LayerFigures]) -> dict[str, Any]:
    areas = np.concatenate([np.zeros(0, np.int64), *(layer.areas for layer in layers)])
    sides = np.sqrt(areas)
    count = len(areas)
    touching = sum(layer.num_touching for layer in layers)
    return {
        "instances": count,
        "images": sum(len(layer.areas) > 0 for layer in layers),
        "sqrt_area": _rounded(np.quantile(sides, _QUANTILES)) if count else None,
        "share_small": round(float((sides < SMALL).mean()), 4) if count else None,
        "share_touching": round(touching / count, 4) if count else None,
        "split_ids": sum(layer.num_split for layer in layers),
        "dropped": sum(layer.num_dropped for layer in layers),
    }


def _summarize_image(image: ImageFigures, num_classes: int) -> dict[str, Any]:
    layers = image.layers.values()
    counts = [len(image.layers[k].areas) if k in image.layers else 0 for k in range(num_classes)]
    return {
        "name": image.name,
        "height": image.height,
        "width": image.width,
        "instances": counts,
        "missing_classes": [f"class{k + 1}" for k, count in enumerate(counts) if count == 0],
        "touching": sum(layer.num_touching for layer in layers),
        "split_ids": sum(layer.num_split for layer in layers),
        "overlap_pixels": image.overlap,
        "channel_mean": _rounded(channel_statistics(image.histogram)[0]),
    }


def _range(values: Sequence[int]) -> list[float] | None:
    return [min(values), float(np.median(values)), max(values)] if values else None


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in values]


def _class_row(row: dict[str, Any]) -> list[str]:
    quantiles = row["sqrt_area"]
    sizes = [f"{value:.1f}" for value in quantiles] if quantiles else ["-"] * len(_QUANTILES)
    shares = [
        "-" if row[key] is None else f"{row[key]:.1%}" for key in ("share_small", "share_touching")
    ]
    counts = [_number(row[key]) for key in ("split_ids", "dropped")]
    return [
        row["name"],
        _number(row["instances"]),
        _number(row["images"]),
        *sizes,
        *shares,
        *counts,
    ]


def _number(value: float) -> str:
    return f"{value:,}"


def _span(values: Sequence[float]) -> str:
    least, median, greatest = values
    return f"{least:,g} / {median:,g} / {greatest:,g}" if least < greatest else f"{least:,g}"


def _triple(values: Sequence[float]) -> str:
    return "  ".join(f"{value:.2f}" for value in values)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligns columns: the first and a column of texts to the left, numbers to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 or header[index] == "absent" else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join(lines)
