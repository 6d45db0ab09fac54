"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

DATA = "data"
TARGETS = "targets and losses"
POSTPROCESSING = "post-processing"
ENCODING = "encoding"


class Parts:
    """Adds up the seconds spent inside the functions of each part.

    A part inside another counts to the outer one. What no part covers is the caller's rest.

    Args:
        device: that is waited for where a part begins and ends.
    """

    def __init__(self, device: str) -> None:
        self._is_cuda = device.startswith("cuda")
        self._inside = False
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def now(self) -> float:
        """Return the time in seconds, when all that was asked of the device is done."""
        if self._is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Count a block to a part."""
        if self._inside:
            yield
            return
        self._inside = True
        begin = self.now()
        try:
            yield
        finally:
            self._seconds[part] += self.now() - begin
            self._inside = False

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Count all calls of a function to a part.

        Args:
            owner: object, class or module that has the function; it is replaced there.
            name: the attribute.
            part: to count to.
        """
        function: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.time(part):
                return function(*args, **kwargs)

        setattr(owner, name, staticmethod(watched) if isinstance(owner, type) else watched)

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call."""
        seconds: dict[str, float] = dict(self._seconds)
        self._seconds.clear()
        return seconds
