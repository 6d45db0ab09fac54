"""A JSON list read one element at a time, from a file that may hold anything.

The standard library's decoder is right but takes a document whole: a hostile file of a few hundred
megabytes becomes many gigabytes of Python objects. Here each element is decoded by it and then
forgotten, in memory bounded by the longest element allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

# A thousand times a usual prediction; at most about 250 MB as Python objects.
MAX_ELEMENT_CHARACTERS = 4 << 20
_READ_CHARACTERS = 1 << 16
_WHITESPACE = re.compile(r"[ \t\n\r]*")
# Of a signed 64-bit integer. `int` of a long text takes quadratic time and is refused by Python.
_MAX_DIGITS = 19
_KINDS = {"{": "an object", '"': "a string", "t": "true", "f": "false", "n": "null"}


class JsonListError(ValueError):
    """Text that is not a JSON list.

    Args:
        message: what is wrong.
        line: where it is, counted from 1.
        column: where it is in that line, counted from 1.
    """

    def __init__(self, message: str, line: int, column: int) -> None:
        self.message, self.line, self.column = message, line, column
        super().__init__(f"{message} (line {line}, column {column})")


@dataclass(frozen=True)
class LongInteger:
    """An integer of more digits than 64 bits hold, which is not converted."""

    digits: int


@dataclass(frozen=True, slots=True)
class Element:
    """One element of the list.

    Attributes:
        value: as `json.loads` gives it, but for integers of over 19 digits, which are
            `LongInteger`.
        repeated_keys: keys that stand twice in one object; the last one counts, as in `json`.
    """

    value: Any
    repeated_keys: tuple[str, ...]


def iter_json_list(stream: TextIO) -> Iterator[Element]:
    """Yields the elements of a list.

    Args:
        stream: text opened for reading, positioned at its start.

    Yields:
        the elements in order, each as soon as it is read.

    Raises:
        JsonListError: at the first place that is not JSON, not a list, too deeply nested, or an
            element longer than `MAX_ELEMENT_CHARACTERS`.
        UnicodeDecodeError: from the stream.
    """
    return _ListReader(stream).elements()


class _ListReader:
    """A window of the text, from the element being read on, and where it lies in the file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._text = ""
        self._position = 0
        self._at_end = False
        self._line, self._column = 1, 1  # of the window's first character
        self._repeated: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=_parse_int)

    def elements(self) -> Iterator[Element]:
        first = self._peek()
        if first != "[":
            raise self._wrong_top_level(first)
        self._position += 1
        if self._peek() == "]":
            self._position += 1
        else:
            while True:
                yield self._element()
                mark = self._peek()
                if mark not in (",", "]"):
                    raise self._fault("expected ',' or ']' after an element")
                self._position += 1
                if mark == "]":
                    break
                self._peek()
        if self._peek():
            raise self._fault("text after the end of the list")

    def _element(self) -> Element:
        while True:
            self._repeated = []
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except RecursionError:
                raise self._fault("nested too deeply") from None
            except json.JSONDecodeError as error:
                # It may only have been cut off by the end of the window.
                if self._at_end:
                    raise self._fault(error.msg, error.pos) from None
                if len(self._text) - self._position > MAX_ELEMENT_CHARACTERS:
                    raise self._too_long(error) from None
            else:
                # A number may go on behind the window; anything else is closed by its last mark.
                if end < len(self._text) or self._at_end:
                    self._position = end
                    return Element(value, tuple(self._repeated))
            # Doubling keeps the work linear in the length of the element.
            self._read(max(_READ_CHARACTERS, len(self._text) - self._position))

    def _too_long(self, error: json.JSONDecodeError) -> JsonListError:
        if "Unterminated" in error.msg or error.pos >= len(self._text) - 1:
            return self._fault(f"an element of more than {MAX_ELEMENT_CHARACTERS} characters")
        return self._fault(error.msg, error.pos)

    def _peek(self) -> str:
        """Goes to the next character that is no white space; "" at the end of the text."""
        while True:
            # A pattern and no loop: a file may be a gigabyte of spaces.
            match = _WHITESPACE.match(self._text, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._text):
                return self._text[self._position]
            if self._at_end:
                return ""
            self._read(_READ_CHARACTERS)

    def _read(self, characters: int) -> None:
        self._line, self._column = self._place(self._position)
        more = self._stream.read(characters)
        self._at_end = not more
        self._text = self._text[self._position :] + more
        self._position = 0

    def _place(self, position: int) -> tuple[int, int]:
        lines = self._text.count("\n", 0, position)
        if lines:
            return self._line + lines, position - self._text.rfind("\n", 0, position)
        return self._line, self._column + position

    def _fault(self, message: str, position: int | None = None) -> JsonListError:
        return JsonListError(
            message, *self._place(self._position if position is None else position)
        )

    def _wrong_top_level(self, first: str) -> JsonListError:
        if not first:
            return self._fault("the file is empty")
        if first == "\ufeff":
            return self._fault("the file begins with a byte-order mark, which JSON forbids")
        kind = "a number" if first in "-0123456789" else _KINDS.get(first)
        return self._fault(f"{kind}, not a list" if kind else "Expecting value")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    self._repeated.append(key)
                seen.add(key)
        return value


def _parse_int(text: str) -> int | LongInteger:
    return int(text) if len(text) <= _MAX_DIGITS else LongInteger(len(text.lstrip("-")))
