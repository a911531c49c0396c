"""The text of a `map`: what it means, and where an error in it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.errors import ConfigError
from penstock.pipelines.config.load import load
from penstock.pipelines.config.mapping import Map, parse


def written(taken: Map) -> str:
    return ",".join(
        f"{name}[{','.join(f'{source}:{target}' for source, target in pairs)}]"
        for name, pairs in taken
    )


def test_maps_are_parsed() -> None:
    assert parse("A[src:dst]") == (("A", (("src", "dst"),)),)
    assert parse("rec.2[result:data,score:score],det-1[data:image]") == (
        ("rec.2", (("result", "data"), ("score", "score"))),
        ("det-1", (("data", "image"),)),
    )
    assert parse("[result:data]") == (("", (("result", "data"),)),)
    assert parse(" A [ result :\n data ] , [ a:\tb ] ") == parse("A[result:data],[a:b]")


NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,4}(\.[0-9])?", fullmatch=True)
MAP_KEYS = st.from_regex(r"[^\[\],:()='\"\s]{1,4}", fullmatch=True)
MAPS = st.lists(
    st.tuples(
        NAMES | st.just(""),
        st.lists(st.tuples(MAP_KEYS, MAP_KEYS), min_size=1, max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=3,
).map(tuple)


@given(MAPS, st.data())
def test_a_written_map_is_parsed_and_whitespace_means_nothing(
    taken: Map, data: st.DataObject
) -> None:
    spaced = "".join(
        character + data.draw(st.sampled_from(("", "", " ", "\n\t")))
        for character in written(taken)
    )
    assert parse(spaced) == taken


@given(st.text("ab[]:, '\n", max_size=12))
def test_any_text_is_a_map_or_a_config_error(text: str) -> None:
    try:
        taken = parse(text)
    except ConfigError:
        return
    assert parse(written(taken)) == taken
    assert written(taken) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "at", "message"),
    [
        ("", 1, "expected a node's name or '[', found the end"),
        ("A", 2, "expected '[', as in A[result:data], found the end"),
        ("A[", 3, "expected the key to take, found the end"),
        ("A[]", 3, "expected the key to take, found ']'"),
        ("A[result]", 9, "expected ':', as in result:data, found ']'"),
        ("A[result:]", 10, "expected what 'result' is called here, found ']'"),
        ("A[a:b:c]", 6, "expected ',' or ']', found ':'"),
        ("A[a:b,]", 7, "expected the key to take, found ']'"),
        ("A[a:b", 6, "expected ',' or ']', found the end"),
        ("A[a:b]  B[c:d]", 9, "expected ',' or the end, found 'B'"),
        ("A[a:b],", 8, "expected a node's name or '[', found the end"),
        ("A['a':b]", 3, 'expected the key to take, found "\'"'),
        ("A:b", 2, "expected '[', as in A[result:data], found ':'"),
    ],
)
def test_errors_show_the_position(text: str, at: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    (problem,) = caught.value.problems
    head, *shown = problem.message.split("\n")
    assert (head, problem.key) == (f"at character {at} of the map: {message}", "map")
    assert shown == [f"    {text}", " " * (at + 3) + "^"]


def test_a_long_text_is_shown_around_the_position() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("A[" + "a:b," * 100_000 + "]" + "x" * 1000)
    _, line, caret = str(caught.value).split("\n")
    assert len(line) < 110 and line[len(caret) - 1] == "]"


@pytest.mark.parametrize(
    "value", [3, ["a[b:c]"], None, True, {"a": "b"}, {"a": {"result": "data"}}]
)
def test_only_text_is_a_map(value: Any) -> None:
    with pytest.raises(
        ConfigError, match=r'\[b\] map: expected text, as in map = "A\[result:data\]", found '
    ):
        load(
            {"a": {"backend": "Identity", "next": "b"}, "b": {"backend": "Identity", "map": value}}
        )
