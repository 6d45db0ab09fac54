"""What is said about a file once, however often it is read."""

from __future__ import annotations

import logging

_said: set[tuple[str, str]] = set()


def log_once(logger: logging.Logger, level: int, path: str, message: str, *values: object) -> None:
    """Log ``path: message % values``, the first time this process says so of this file.

    A training reads each image every epoch; what is odd about it needs saying once.

    Args:
        logger: of the module that speaks.
        level: such as ``logging.WARNING``.
        path: the file.
        message: format of the notice.
        values: for the format.
    """
    notice = (path, message % values)
    if notice not in _said:
        _said.add(notice)
        logger.log(level, "%s: %s", *notice)
