"""What fails while a TIFF is read, in words that name the file and say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import CellDataError

try:
    import imagecodecs  # noqa: F401

    HAVE_IMAGECODECS = True
except ImportError:
    HAVE_IMAGECODECS = False

EXPECTED_TIFF = "a TIFF image"
ADVICE_DAMAGED = "copy or export the file again"


@contextmanager
def translate_errors(name: str) -> Iterator[None]:
    """Raise whatever tifffile, imagecodecs, NumPy or the system raise as a `CellDataError`.

    This is the one place where other libraries' exceptions are translated: only what reads the file
    belongs into its `with` block.

    Args:
        name: the file's path.
    """
    try:
        yield
    except CellDataError:
        raise
    except FileNotFoundError as error:
        found = "a link to a file that is missing" if os.path.islink(name) else "no such file"
        raise CellDataError(name, found, EXPECTED_TIFF, "check the path") from error
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror or error})"
        raise CellDataError(name, found, "a readable file", "check path and permissions") from error
    except MemoryError as error:
        raise CellDataError(
            name,
            "an image that does not fit into memory",
            "an image that does",
            "free memory, or cut the image into smaller ones",
        ) from error
    except Exception as error:
        # Damaged bytes make the decoders fail in ways that no list could name: struct.error,
        # zlib.error, the codecs' own RuntimeErrors, and TypeErrors for tags of an unexpected type.
        if not HAVE_IMAGECODECS and "imagecodecs" in str(error):
            raise CellDataError(
                name,
                f"a file that cannot be decoded without imagecodecs ({error})",
                "no compression or deflate, or an installed imagecodecs",
                "install imagecodecs: pip install imagecodecs",
            ) from error
        found = f"data that cannot be decoded ({type(error).__name__}: {error!s:.200})"
        raise CellDataError(name, found, EXPECTED_TIFF, ADVICE_DAMAGED) from error


def tag_name(value: object) -> str:
    """A tag's value by its name in the specification, where it has one.

    Args:
        value: an enum of tifffile's, or a number.
    """
    return str(getattr(value, "name", value))


def truncated(path: str, found: str) -> CellDataError:
    """The error for data that are not all there.

    Args:
        path: the file.
        found: what is missing.
    """
    return CellDataError(path, f"a truncated or damaged TIFF: {found}", "all data", ADVICE_DAMAGED)
