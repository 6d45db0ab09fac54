"""The errors that a user's data and configs are refused with."""

from __future__ import annotations

from os import PathLike, fspath


class CellDataError(ValueError):
    """A file or folder that cannot be used, and what to do about it.

    Args:
        path: the file or folder at fault.
        found: what is there.
        expected: what should be there.
        advice: what the user can do, as an imperative.
    """

    def __init__(self, path: str | PathLike[str], found: str, expected: str, advice: str) -> None:
        self.path = fspath(path)
        self.found = found
        self.expected = expected
        self.advice = advice
        super().__init__(f"{self.path}: found {found}; expected {expected}; {advice}")

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str]]:
        # Data-loader workers send their errors pickled; the default would call the constructor
        # with the message alone.
        return type(self), (self.path, self.found, self.expected, self.advice)


class ConfigError(ValueError):
    """A config that cannot be used; the message names the file or keys, and what is expected."""


class MachineError(OSError):
    """What a run needs of memory, processes or disk is not there; the message says what to do.

    An ``OSError``, so that whoever expects the system to fail is prepared for it.
    """
