"""A trace as text: what is said, what is left unsaid, and that nothing in it steers a terminal."""

from __future__ import annotations

from typing import Any

from penstock.app.cli.trace_text import lines

RAN = {"queue_ms": 0.25, "run_ms": 12.5, "batch": 3}


def text(*steps: Any) -> Any:
    return list(lines(steps))


def test_what_default_filters_nearly_always_say_is_not_said() -> None:
    for filter_name in ("swap", "Run"):
        step = {
            "node": "a",
            "filter": filter_name,
            "status": "Run",
            "keys": ["data"],
            **RAN,
            "left": ["data", "result"],
        }
        assert text(step) == [
            "a: queue 0.250 ms, run 12.500 ms, batch 3",
            "    in: data",
            "    out: data, result",
        ]


def test_what_filters_say() -> None:
    assert text(
        {
            "node": "a",
            "filter": "or",
            "status": "Skip",
            "reason": "it has a result",
            "keys": ["data"],
        }
    ) == ["a: or says Skip (it has a result)"]
    assert text({"node": "a", "filter": "swap", "status": "Break", "keys": []}) == [
        "a: swap says Break"
    ]
    assert text({"node": "a", "status": "skipped with b"}) == ["a: skipped with b"]
    assert text({"node": "a", "filter": "or", "status": "Run", "keys": ["data"], **RAN})[0] == (
        "a: or says Run, queue 0.250 ms, run 12.500 ms, batch 3"
    )


def test_what_did_not_come_through() -> None:
    assert text({"node": "a", "keys": ["data"]}) == [
        "a: dropped before it was through",
        "    in: data",
    ]
    assert (
        text({"node": "a", "keys": ["data"], **RAN, "error": "ValueError: no"})[2]
        == "    out: raised ValueError: no"
    )
    assert (
        text({"node": "a", "keys": ["data"], **RAN, "left": ["data", "error"], "error": "no"})[2]
        == "    out: data, error (no)"
    )


def test_members_and_values_where_they_are_known() -> None:
    step = {
        "node": "a", "keys": ["data"], **RAN, "note": "on a thread for the trace", "in": {"data": "1"}, "out": {"data": "1"},
        "left": ["data"],
        "members": [
            {"backend": "Sequential", "depth": 1, "ms": 1.0, "out": {"data": "2"}},
            {"backend": "Inner", "depth": 2, "ms": 0.5, "out": {"data": "2"}, "error": "KeyError: 'x'"},
        ],
    }  # fmt: skip
    assert text(step) == [
        "a: queue 0.250 ms, run 12.500 ms, batch 3, on a thread for the trace",
        "    in: data: 1",
        "    Sequential    1.000 ms  data: 2",
        "      Inner       0.500 ms  data: 2 raised KeyError: 'x'",
        "    out: data: 1",
    ]


def test_parts_and_yields() -> None:
    part = [{"node": "b", "status": "skipped with a"}]
    assert text(
        {
            "node": "a",
            "keys": [],
            "parts": [part, part],
            "more_parts": 3,
            "yields": [part],
            "left": ["data"],
            **RAN,
        }
    )[1:] == [
        "    in:",
        "    part 1 of 5",
        "        b: skipped with a",
        "    part 2 of 5",
        "        b: skipped with a",
        "    … and 3 more",
        "    yield 1 of 1",
        "        b: skipped with a",
        "    out: data",
    ]


def test_nothing_steers_a_terminal() -> None:
    found = text(
        {"node": "a", "keys": ["\x1b[2J", "a\nb: run"], **RAN, "error": "gone\r\x9b31m…\udcff"}
    )
    assert found[1:] == ["    in: \\x1b[2J, a\\nb: run", "    out: raised gone\\r\\x9b31m…\\udcff"]
