"""JSON of requests: parsed within bounds, with bare NaN and Infinity."""

from __future__ import annotations

import json
from math import inf
from typing import Any

import numpy as np
import orjson

from penstock.backends.errors import InvalidRequest

from ..http.body import kind_of

UINT64_MAX = 2**64 - 1

MAX_JSON_CONTAINERS = 1 << 20
"""The most lists and objects that a text may have.

Each takes two bytes of the text, and thirty times as many once it is parsed.
"""

_NOT_A_MARK = bytes(set(range(256)) - set(b'[]{}"'))
_NOT_A_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


def parse_json(text: bytes, depth: int) -> Any:
    """Parse a JSON text, which may hold bare NaN and Infinity.

    Raises `InvalidRequest` for a text that is not JSON, that nests more than `depth` levels, or
    that has more than `MAX_JSON_CONTAINERS` lists and objects.
    """
    _check_brackets(text, depth)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason = str(error)
    try:
        if b"NaN" in text or b"Infinity" in text:
            # Slower than orjson, but it reads NaN and Infinity.
            value = json.loads(text.decode(), parse_float=_finite)
            if b"\\u" in text:
                # It also reads lone surrogates, which no answer can carry: encoding them raises.
                json.dumps(value, ensure_ascii=False).encode()
            return value
    except (ValueError, RecursionError):
        pass
    raise InvalidRequest(f"failed to parse the request JSON buffer: {reason}")


def _finite(text: str) -> float:
    """Parse a number. Raises `ValueError` for one that a double would round to infinity."""
    number = float(text)
    if number in {inf, -inf}:
        raise ValueError(text)
    return number


def _check_brackets(text: bytes, depth: int) -> None:
    """Check the nesting of a text before it is parsed.

    Takes linear time, and hardly any for a text with few brackets.
    """
    if text.count(b"[") + text.count(b"{") <= depth:
        return
    brackets = text.translate(None, _NOT_A_BRACKET)
    if _are_fine(brackets, depth):
        return
    if b'"' in text:  # brackets within strings do not count
        brackets = _brackets_outside_strings(text)
    most = 2 * MAX_JSON_CONTAINERS
    if len(brackets) > most and _depth(brackets[:most]) <= depth:
        raise InvalidRequest(f"the JSON has more than {MAX_JSON_CONTAINERS} lists and objects")
    if not _are_fine(brackets, depth):
        raise InvalidRequest(f"JSON nesting depth exceeds maximum allowed limit ({depth})")


def _brackets_outside_strings(text: bytes) -> bytes:
    """Return the brackets that follow an even number of quotes.

    A regular expression would hold the interpreter for seconds; on a string that does not end, for
    a time that grows with the square of its length.
    """
    if b"\\" in text:
        # What remains of a run of backslashes stands before a character other than a quote.
        text = text.replace(rb"\\", b"").replace(rb"\"", b"")
    marks = np.frombuffer(text.translate(None, _NOT_A_MARK), np.uint8)
    quotes = marks == ord('"')
    inside = np.cumsum(quotes, dtype=np.uint8) & 1  # counted modulo 256
    outside: bytes = marks[~(inside.astype(np.bool_) | quotes)].tobytes()
    return outside


def _are_fine(brackets: bytes, depth: int) -> bool:
    return len(brackets) <= depth or (
        len(brackets) <= 2 * MAX_JSON_CONTAINERS and _depth(brackets) <= depth
    )


def _depth(brackets: bytes) -> int:
    return int(np.cumsum(_STEP[np.frombuffer(brackets, np.uint8)], dtype=np.int32).max(initial=0))


def check_boolean(value: Any, subject: str) -> bool:
    """Return a boolean. Raises `InvalidRequest` for any other value; `subject` names it."""
    if type(value) is not bool:
        raise InvalidRequest(f"{subject} is a JSON {kind_of(value)}, expected a boolean")
    return value


def check_unsigned(value: Any, subject: str) -> int:
    """Return an unsigned 64-bit integer.

    Raises `InvalidRequest` for any other value; `subject` names it.
    """
    if type(value) is not int or not 0 <= value <= UINT64_MAX:
        text = orjson.dumps(str(value)[:40]).decode()
        raise InvalidRequest(f"{subject} must be an unsigned 64-bit integer, got {text}")
    return value
