"""Oracle: `json.loads` of the whole text."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellseg_d2.export import json_stream
from cellseg_d2.export.json_stream import JsonListError, LongInteger, iter_json_list

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def read(text: str) -> list[Any]:
    return [element.value for element in iter_json_list(io.StringIO(text))]


@pytest.fixture(params=[1, 7, 1 << 16])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads in small pieces, so that every kind of value is cut somewhere."""
    monkeypatch.setattr(json_stream, "_READ_CHARACTERS", request.param)


@pytest.mark.usefixtures("window")
def test_elements_cut_anywhere_are_read_whole() -> None:
    text = ' [ 12.5e3 ,-7, {"a": [1, "x]\\"},\\u00e9"], "b": {}} ,\n"é", null,true ,[[]]  ]\n '
    assert read(text) == json.loads(text)


@given(st.lists(values, max_size=6), st.sampled_from([None, 1]))
def test_any_list_is_read_as_json_reads_it(elements: list[Any], indent: int | None) -> None:
    assert read(json.dumps(elements, indent=indent)) == elements


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize(
    ("text", "message", "line", "column"),
    [
        ("", "empty", 1, 1),
        ("  \n ", "empty", 2, 2),
        ('{"a": 1}', "an object, not a list", 1, 1),
        ("17", "a number, not a list", 1, 1),
        ("null", "null, not a list", 1, 1),
        ("hello", "Expecting value", 1, 1),
        ("\ufeff[]", "byte-order mark", 1, 1),
        ("[1, 2", "expected ',' or ']'", 1, 6),
        ("[1 2]", "expected ',' or ']'", 1, 4),
        ("[1,\n 2,\n ]", "Expecting value", 3, 2),
        ('[1,\n {"a" 3}]', "Expecting ':' delimiter", 2, 7),
        ('[{"a": "b]', "Unterminated string", 1, 8),
        ("[1] 2", "text after the end", 1, 5),
        ("[1]]", "text after the end", 1, 4),
        ("[" * 100_000, "nested too deeply", 1, 2),
    ],
)
def test_what_is_no_list_is_refused_with_its_place(
    text: str, message: str, line: int, column: int
) -> None:
    with pytest.raises(JsonListError, match=message) as caught:
        read(text)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_elements_before_the_fault_are_read() -> None:
    elements = iter_json_list(io.StringIO('[{"a": 1}, 2, oops'))
    assert [next(elements).value, next(elements).value] == [{"a": 1}, 2]
    with pytest.raises(JsonListError):
        next(elements)


def test_repeated_keys_are_reported() -> None:
    (element,) = iter_json_list(io.StringIO('[{"a": 1, "b": {"c": 2, "c": 3}, "a": 4}]'))
    assert element.value == {"a": 4, "b": {"c": 3}}
    assert sorted(element.repeated_keys) == ["a", "c"]


def test_long_integers_are_not_converted() -> None:
    nineteen, twenty, endless = "9" * 18, "-" + "1" * 20, "7" * 100_000
    assert read(f"[{nineteen}, {twenty}, {endless}]") == [
        int(nineteen),
        LongInteger(20),
        LongInteger(100_000),
    ]


def test_an_element_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_ELEMENT_CHARACTERS", 1000)
    monkeypatch.setattr(json_stream, "_READ_CHARACTERS", 100)
    stream = io.StringIO('["' + "a" * 100_000 + '"]')
    with pytest.raises(JsonListError, match="more than 1000 characters"):
        list(iter_json_list(stream))
    assert stream.tell() < 5000
