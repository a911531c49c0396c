"""JSON texts of requests: parsed within bounds, with bare NaN and Infinity, and what their values are called."""

from __future__ import annotations

import json
from math import inf
from typing import Any

import numpy as np
import orjson

from penstock.backends.errors import InvalidRequest

MANY = 1 << 20
"""Lists and objects of a text, at most. Each takes two bytes of it and thirty times as many when it is parsed."""

_NO_MARK = bytes(set(range(256)) - set(b'[]{}"'))
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


def parse_json(text: bytes, depth: int) -> Any:
    """What a JSON text says, bare NaN and Infinity too. Raises `InvalidRequest`, also for more than `depth` levels."""
    _check_brackets(text, depth)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason = str(error)
    try:
        if b"NaN" in text or b"Infinity" in text:
            found = json.loads(text.decode(), parse_float=_finite)  # slower, and knows them
            if b"\\u" in text:
                json.dumps(
                    found, ensure_ascii=False
                ).encode()  # it takes lone surrogates, which no answer can carry
            return found
    except (ValueError, RecursionError):
        pass
    raise InvalidRequest(f"failed to parse the request JSON buffer: {reason}")


def _finite(text: str) -> float:
    """A number as it is written. Raises `ValueError` for one that no double holds: it is no infinity."""
    number = float(text)
    if number in {inf, -inf}:
        raise ValueError(text)
    return number


def _check_brackets(text: bytes, depth: int) -> None:
    """Before the text is parsed; in linear time, and in none to speak of for what has few brackets."""
    brackets = text.translate(None, _NO_BRACKET)
    if _are_fine(brackets, depth):
        return
    if b'"' in text:  # those in strings do not count
        brackets = _brackets_outside_strings(text)
    if len(brackets) > 2 * MANY and _depth(brackets[: 2 * MANY]) <= depth:
        raise InvalidRequest(f"the JSON has more than {MANY} lists and objects")
    if not _are_fine(brackets, depth):
        raise InvalidRequest(f"JSON nesting depth exceeds maximum allowed limit ({depth})")


def _brackets_outside_strings(text: bytes) -> bytes:
    """Those behind an even number of quotes. No regular expression: it would hold the interpreter for seconds, or, where a string does
    not end, for the square of that.
    """
    if b"\\" in text:
        text = text.replace(rb"\\", b"").replace(
            rb"\"", b""
        )  # what is left of a run of backslashes is before another character
    marks = np.frombuffer(text.translate(None, _NO_MARK), np.uint8)
    quotes = marks == ord('"')
    inside = np.cumsum(quotes, dtype=np.uint8) & 1  # counted modulo 256
    outside: bytes = marks[~(inside.astype(np.bool_) | quotes)].tobytes()
    return outside


def _are_fine(brackets: bytes, depth: int) -> bool:
    return len(brackets) <= depth or (len(brackets) <= 2 * MANY and _depth(brackets) <= depth)


def _depth(brackets: bytes) -> int:
    return int(np.cumsum(_STEP[np.frombuffer(brackets, np.uint8)], dtype=np.int32).max(initial=0))


def kind_of(value: Any) -> str:
    """JSON's own name of a value's type."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
