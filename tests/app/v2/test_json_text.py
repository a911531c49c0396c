"""The bounds of JSON texts, which hold before a text is parsed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.app.v2.json_text import MAX_JSON_CONTAINERS, parse_json
from penstock.backends.errors import InvalidRequest


def test_a_text_may_not_have_too_many_lists() -> None:
    for text in (
        b"[" + b"[]," * MAX_JSON_CONTAINERS + b"1]",
        b'{"a":' + b'[{"x":[]}],' * MAX_JSON_CONTAINERS,
    ):
        with pytest.raises(
            InvalidRequest, match=f"more than {MAX_JSON_CONTAINERS} lists and objects"
        ):
            parse_json(text, 100)
    with pytest.raises(InvalidRequest, match="nesting depth"):
        parse_json(b"[" * 3 * MAX_JSON_CONTAINERS, 100)
    assert (
        len(parse_json(b"[" + b"[]," * (MAX_JSON_CONTAINERS - 2) + b"[]]", 100))
        == MAX_JSON_CONTAINERS - 1
    )
    assert parse_json(b'["' + b"[" * 3 * MAX_JSON_CONTAINERS + b'"]', 100) == [
        "[" * 3 * MAX_JSON_CONTAINERS
    ]


@given(
    st.lists(st.sampled_from(["[", "]", "{", "}", '"', "\\", "a", "]}", '\\"']), max_size=9),
    st.integers(0, 9),
)
def test_brackets_in_strings_do_not_count(parts: Any, levels: Any) -> None:
    text = f"{'[' * levels}{json.dumps(''.join(parts))}{']' * levels}".encode()
    parse_json(text, levels)
    if levels:
        with pytest.raises(InvalidRequest, match="nesting depth"):
            parse_json(text, levels - 1)
