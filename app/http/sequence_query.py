"""Read from a query of which sequence a predict request is a step.

`?sequence=cam-7&sequence_start=true&sequence_end=true`, as the keywords of a call in Python. A
query fits where a header does not: in a WebSocket of a browser, and in the rule by which a load
balancer sends all steps of a sequence to one server.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qs

from penstock.backends.errors import InvalidRequest
from penstock.pipelines.sequences.step import Step

NAMES = ("sequence", "sequence_start", "sequence_end")

FLAGS = {"true": True, "1": True, "false": False, "0": False}

MAX_INTEGER_DIGITS = 20
"""Those of the largest id that is an integer."""


def step_of(query: bytes) -> Step | None:
    """Return the step that a query names; None if it names no sequence. It ignores other names.

    Raises `InvalidRequest`.
    """
    if b"sequence" not in query:
        return None
    try:
        given = parse_qs(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise InvalidRequest("the query is malformed: expected percent-encoded UTF-8") from None
    identity, start, end = (_only(name, given.get(name, ())) for name in NAMES)
    if identity is None:
        if start is not None or end is not None:
            raise InvalidRequest(
                "the query has sequence_start or sequence_end, but no sequence: expected the id of "
                "the sequence, as in ?sequence=cam-7"
            )
        return None
    return Step(
        int(identity) if _is_integer(identity) else identity,
        _flag("sequence_start", start),
        _flag("sequence_end", end),
    )


def _only(name: str, values: Sequence[str]) -> str | None:
    if len(values) > 1:
        raise InvalidRequest(f"the query has {name} {len(values)} times, expected it once")
    return values[0] if values else None


def _is_integer(text: str) -> bool:
    """Return whether an id is an integer: digits as an integer is written, without zeros before."""
    return (
        len(text) <= MAX_INTEGER_DIGITS
        and text.isascii()
        and text.isdigit()
        and (text == "0" or text[0] != "0")
    )


def _flag(name: str, value: str | None) -> bool:
    if value is None:
        return False
    flag = FLAGS.get(value.lower())
    if flag is None:
        raise InvalidRequest(f"{name} is {value[:40]!r} in the query: expected true or false")
    return flag
