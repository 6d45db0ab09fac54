"""Deterministic splits into training and validation images."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from ..errors import CellDataError
from .layout import unique_image_names

logger = logging.getLogger(__name__)


def split_dicts(
    dicts: Sequence[dict[str, Any]],
    *,
    fraction: float = 0.1,
    seed: int = 0,
    names: Sequence[str] = (),
    group_pattern: str = "",
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Splits data set dicts into training and validation.

    By list: ``names`` says which images are held out, and ``fraction`` is not used. Otherwise
    images are drawn by a hash of seed and name, so the split depends neither on the order of
    ``dicts`` nor on the machine, and adding an image moves few others. With ``group_pattern``
    whole groups are drawn: images of one patient on both sides overstate the score.

    Args:
        dicts: as ``load_cell_dicts`` gives them; each is called ``image_name(dict["file_name"])``.
        fraction: share of the images to hold out, in [0, 1). Above 0, each side gets at least one
            image (with groups, at least one group) if there are two.
        seed: another seed draws another split.
        names: names of the images to hold out.
        group_pattern: regular expression, searched in each name; its first group, or the whole
            match if it has none, is the image's group (the patient). Groups are taken while they
            bring the number of validation images nearer to ``fraction``.

    Returns:
        (training, validation), each in the order of ``dicts``.

    Raises:
        CellDataError: a name is unknown or given to two images, or the pattern does not match one.
        ValueError: ``fraction`` is out of range, the pattern is not a regular expression, or both
            ``names`` and ``group_pattern`` are given.
    """
    if isinstance(names, str):
        raise ValueError(f"names must be a list of names, not the text {names!r}")
    if names and group_pattern:
        raise ValueError("hold out images by names or by group_pattern, not by both")
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be at least 0 and below 1, not {fraction}")
    image_names = unique_image_names(d["file_name"] for d in dicts)
    if names:
        held_out = _by_names(dicts, image_names, names)
    else:
        groups = _groups(dicts, image_names, group_pattern)
        held_out = _by_fraction(groups, fraction * len(dicts), seed)
        if fraction > 0 and not held_out:
            logger.warning("Nothing to hold out: all %d images are in one group.", len(dicts))
    is_val = [name in held_out for name in image_names]
    train = [d for d, val in zip(dicts, is_val, strict=True) if not val]
    val = [d for d, val in zip(dicts, is_val, strict=True) if val]
    logger.info(
        "Split %d images into %d for training, %d held out.", *map(len, (dicts, train, val))
    )
    return train, val


def _by_names(
    dicts: Sequence[dict[str, Any]], image_names: list[str], names: Sequence[str]
) -> set[str]:
    for name in names:
        if name not in image_names:
            close = difflib.get_close_matches(name, image_names) or image_names[:3]
            raise CellDataError(
                os.path.commonpath([os.path.abspath(d["file_name"]) for d in dicts] or [os.curdir]),
                f"no image called {name!r} among the {len(dicts)} images",
                f"names such as {', '.join(close)}",
                "correct the list of validation images",
            )
    return set(names)


def _groups(
    dicts: Sequence[dict[str, Any]], image_names: list[str], pattern: str
) -> dict[str, list[str]]:
    """{group: names of its images}; without a pattern each image is a group of its own."""
    if not pattern:
        return {name: [name] for name in image_names}
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"group_pattern {pattern!r} is no regular expression: {error}") from error
    groups: dict[str, list[str]] = {}
    for record, name in zip(dicts, image_names, strict=True):
        match = expression.search(name)
        group = match[1 if expression.groups else 0] if match else None
        if not group:
            raise CellDataError(
                record["file_name"],
                f"the name {name!r}, in which group_pattern {pattern!r} finds no group",
                "a name that yields the patient",
                "correct the pattern or the name",
            )
        groups.setdefault(group, []).append(name)
    return groups


def _by_fraction(groups: dict[str, list[str]], target: float, seed: int) -> set[str]:
    """Draws whole groups until their images are as near to ``target`` as they get."""
    if target == 0 or len(groups) < 2:
        return set()

    def rank(group: str) -> bytes:
        return hashlib.sha256(f"{seed}:{group}".encode("utf-8", "surrogateescape")).digest()

    order = sorted(groups, key=rank)
    taken: list[str] = []
    count = 0
    for group in order:
        size = len(groups[group])
        if len(taken) < len(groups) - 1 and abs(count + size - target) < abs(count - target):
            taken.append(group)
            count += size
    if not taken:
        taken = [min(order, key=lambda group: len(groups[group]))]
    return {name for group in taken for name in groups[group]}
