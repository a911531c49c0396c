"""The bounds of JSON texts, which hold before a text is parsed."""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.app.http import json_text
from penstock.app.http.json_text import (
    ALONE_BYTES,
    LONG_STRING_BYTES,
    MAX_JSON_CONTAINERS,
    MAX_JSON_COST,
    JsonLimits,
    check_json,
    loads,
    parse_json,
    take_long_strings,
)
from penstock.backends.errors import InvalidRequest, TooLarge
from penstock.backends.memory import MemoryBudget, Reservation

PIECES = [b'"', b"\\", b"[", b"]", b"{", b"}", b",", b":", b"a", b'\\"']
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text() | st.integers(-99, 2**63),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)

LIMITS = JsonLimits(depth=100, values=1 << 20)
MANY = MAX_JSON_CONTAINERS


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"[]," * MANY + b"1]",
        b'{"image": [' + b"[]," * MANY + b'"]',
        b'{"a":' + b'[{"x":[]}],' * MANY,
        b"{" + b'"key":1,' * (MANY + 1) + b"}",
        rb'{"\\\\":1,' + rb'"\"":1,' * (MANY + 1) + b"}",
    ],
    ids=["lists", "cut", "objects", "keys", "escapes"],
)
def test_a_text_may_not_have_too_many_lists_objects_and_keys(text: bytes) -> None:
    with pytest.raises(TooLarge, match=f"more than {MANY} lists, objects and keys"):
        parse_json(text, LIMITS)


def test_a_text_may_not_have_too_many_values() -> None:
    for text in (b"[1,2,3,4]", b'["a","b","c","d"]', b'{"a":1,"b":2}', b"[[],[[],[]]]"):
        with pytest.raises(TooLarge, match=r"more than 3 values and keys \(max_json_values\)"):
            parse_json(text, JsonLimits(100, 3))
        parse_json(text, JsonLimits(100, 16))
    with pytest.raises(InvalidRequest, match="nesting depth"):
        parse_json(b"[" * 3 * MANY, LIMITS)


@pytest.mark.parametrize(
    "text",
    [
        b'["' + b"a" * MAX_JSON_COST + b'"]',
        b'["' + b"a" * (MAX_JSON_COST // 2) + '\U0001f600"]'.encode(),
        b'["' + b"a" * (MAX_JSON_COST // 2) + rb'\ud83d\ude00"]',
        b'["' + rb"\n" * (MAX_JSON_COST // 4) + b'"]',
        b"[" + b'"0123456",' * 999_999 + b'"0123456"]',
        b"[" + b"0.000000000123456," * 999_999 + b"0]",
        b"{" + b'"%0300d":1,' % 7 * 79_999 + b'"a":1}',
    ],
    ids=["ascii", "wide", "escaped", "escapes", "strings", "numbers", "keys"],
)
def test_what_takes_long_to_parse_is_refused(text: bytes) -> None:
    with pytest.raises(TooLarge, match=r"too long to parse.*send tensors as binary data"):
        parse_json(text, LIMITS)


@pytest.mark.parametrize(
    "text",
    [
        b'["' + b"a" * (MAX_JSON_COST - 1000) + b'"]',
        b'["' + rb"\n" * (MAX_JSON_COST // 4 - 100) + b'"]',
        b'["' + b"[{,:" * (MAX_JSON_COST // 4 - 100) + b'"]',
        b"[" + b"255," * 1_000_000 + b"0]",
    ],
    ids=["ascii", "escapes", "marks", "numbers"],
)
def test_what_takes_less_is_parsed(text: bytes) -> None:
    check_json(text, LIMITS)


def test_long_strings_are_taken_out_of_a_text() -> None:
    long = [b"a" * LONG_STRING_BYTES, b"b" * LONG_STRING_BYTES]
    text = b'{"images": ["%b", "short", "%b"], "x": 1}' % tuple(long)
    short, taken = take_long_strings(text)
    document = json.loads(short)
    first, second, third = document.pop("images")
    assert (document, second) == ({"x": 1}, "short")
    assert [bytes(taken[first]), bytes(taken[third])] == long
    for other in (text + b"\\", b'["' + long[0], b'["",' * 10_000 + text):
        assert take_long_strings(other) == (other, {})


def test_what_is_within_strings_does_not_count() -> None:
    text = '[{\\",:' * MANY
    assert parse_json(json.dumps([text, "\\"]).encode(), JsonLimits(1, 3)) == [text, "\\"]
    assert len(parse_json(b"[" + b"[]," * (MANY - 2) + b"[]]", LIMITS)) == MANY - 1


@given(st.binary(max_size=20) | st.lists(st.sampled_from(PIECES)).map(b"".join), st.integers(1, 9))
def test_pieces_are_counted_as_a_whole(text: bytes, size: int) -> None:
    with mock.patch.object(json_text, "_AT_ONCE_BYTES", 1 << 20):
        whole = b"".join(json_text._marks_outside_strings(text))
    with mock.patch.object(json_text, "_AT_ONCE_BYTES", size):
        assert b"".join(json_text._marks_outside_strings(text)) == whole


def test_memory_is_reserved_before_a_text_is_parsed() -> None:
    budget = MemoryBudget(1 << 20)
    memory = Reservation(budget)
    with pytest.raises(TooLarge, match="a parsed body needs"):
        parse_json(b"[" + b"1," * 50_000 + b"1]", LIMITS, memory)
    text = b"[" + b"1.5," * 5000 + b"1]"
    parse_json(text, LIMITS, memory)
    assert memory.size == budget.used > 5000 * sys.getsizeof(1.5)


@pytest.mark.parametrize("text", ['"%s\U0001f600"', '"%s\\ud83d\\ude00"'])
def test_a_character_that_makes_a_whole_string_wider_is_counted(text: str) -> None:
    body = (text % ("a" * 10_000)).encode()
    memory = Reservation(MemoryBudget(1 << 20))
    value = parse_json(body, LIMITS, memory)
    # The string, and the copy of the text that the parser makes.
    assert memory.size >= sys.getsizeof(value) + len(body) > 4 * len(body)


def test_large_integers_beside_nan_are_read_as_they_are_without_it() -> None:
    numbers = "[9223372036854775807,-9223372036854775808,18446744073709551616,123456789012345678]"
    document = f'{{"a":{numbers},"b":NaN}}'.encode()
    assert parse_json(document, LIMITS)["a"] == parse_json(numbers.encode(), LIMITS)
    with pytest.raises(InvalidRequest):  # as without NaN: it is no finite number
        parse_json(b"[NaN," + b"9" * 4000 + b"]", LIMITS)


def test_large_texts_with_nan_are_refused() -> None:
    text = b'["' + b"a" * json_text.MAX_NAMED_BYTES + b'",NaN]'
    with pytest.raises(TooLarge, match="NaN or Infinity may have 8388608 bytes at most"):
        parse_json(text, LIMITS)


def test_marks_that_two_pieces_share_are_found() -> None:
    with mock.patch.object(json_text, "_AT_ONCE_BYTES", 2):
        for start in range(4):
            assert len(parse_json(b"[" + b" " * start + b"NaN,-Infinity]", LIMITS)) == 2
            text = b" " * start + rb'"\u00e9"'
            assert json_text.parsed_bytes(text) == 5 * len(text)


@given(JSON)
def test_the_estimate_is_no_less_than_what_is_counted(value: Any) -> None:
    text = json.dumps(value).encode()
    assert check_json(text, LIMITS) + 2 * len(text) + 64 >= _size(value)


def _size(value: Any) -> int:
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        size += sum(_size(key) + _size(member) for key, member in value.items())
    elif isinstance(value, list):
        size += sum(map(_size, value))
    return size


@given(
    st.lists(st.sampled_from(["[", "]", "{", "}", '"', "\\", "a", "]}", '\\"']), max_size=9),
    st.integers(0, 9),
)
def test_brackets_in_strings_do_not_count(parts: Any, levels: Any) -> None:
    text = f"{'[' * levels}{json.dumps(''.join(parts))}{']' * levels}".encode()
    parse_json(text, JsonLimits(levels, 100))
    if levels:
        with pytest.raises(InvalidRequest, match="nesting depth"):
            parse_json(text, JsonLimits(levels - 1, 100))


def test_helper_threads_parse_one_large_text_at_a_time() -> None:
    together = threading.Barrier(2)
    met: list[int] = []

    def parse(text: bytes) -> int:
        with suppress(threading.BrokenBarrierError):
            met.append(together.wait(0.5))
        return len(text)

    text = b'"' + b"a" * ALONE_BYTES + b'"'
    with (
        mock.patch("orjson.loads", parse),
        ThreadPoolExecutor(4) as threads,
    ):
        assert set(threads.map(loads, [text] * 4)) == {len(text)}
    assert not met


async def test_the_event_loop_does_not_wait_for_a_parse() -> None:
    with json_text._parsing:
        assert len(loads(b'"' + b"a" * ALONE_BYTES + b'"')) == ALONE_BYTES
