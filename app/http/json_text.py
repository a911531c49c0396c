"""JSON of requests: checked within bounds before it is parsed, with bare NaN and Infinity.

orjson keeps the GIL while it parses, on whatever thread it runs, and every other request waits. So
a text that would take it over 50 ms is refused (`MAX_JSON_COST`).
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import inf
from secrets import token_hex
from typing import Any, NamedTuple

import orjson

from penstock.backends.errors import InvalidRequest, TooLarge
from penstock.backends.lazy_numpy import np
from penstock.backends.memory import Reservation, check_room

UINT64_MAX = 2**64 - 1

MAX_JSON_CONTAINERS = 1 << 17
"""The most lists, objects and keys that a text may have.

Each takes two bytes of the text, thirty times as many once it is parsed, and ten times as long to
parse as a number.
"""

MAX_JSON_COST = 32 << 20
"""The most that a text may cost to parse. A byte costs 1, two in a text with backslashes or other
characters than ASCII; values, strings and containers cost more, as below.

The costs were measured: texts of this cost took orjson 37 to 50 ms of processor time, whether they
were one string, numbers, short strings or objects.
"""

VALUE_COST = 24
STRING_COST = 20
CONTAINER_COST = 64
"""The cost of a value or key, and the further cost of a string, and of a list, object or key,
besides its bytes.
"""

LONG_STRING_BYTES = 1 << 18
MOST_STRINGS = 1 << 12
"""`take_long_strings` looks at texts with so many strings at most, one after another."""

VALUE_BYTES = 64
CONTAINER_BYTES = 256
"""The bytes that a parsed number, and a list, object or key, takes at most, besides its text."""

SMALL_TEXT_BYTES = 1 << 14
"""For up to so much there is always room, as for everything else that is small."""

SHORT_TEXT_BYTES = 1 << 10
"""In longer texts characters are counted by NumPy, in up to a tenth of the time."""

PARSER_FACTOR = 14
"""orjson allocates twelve times the size of a text, and copies it. It touches little of that."""

ALONE_BYTES = 1 << 20
"""From this size on, helper threads parse or decode one text at a time."""

PAUSE_SECONDS = 0.005
"""The pause after that. In it the event loop does what has come meanwhile: without it, eight
parses that begin together would hold it up for the sum of their times.
"""

_parsing = threading.Lock()

MAX_NAMED_BYTES = 1 << 23
"""The largest text in which NaN and Infinity are read: the parser that reads them stops everything
else, for 40 ms with this much.
"""

MOST_DIGITS = 20
"""The most characters of an integer of 64 bits."""

_AT_ONCE_BYTES = 1 << 20
"""So much of a text is looked at in one call. Other threads may run between two calls."""

_NOT_A_MARK = bytes(set(range(256)) - set(b'[]{},:"'))


class JsonLimits(NamedTuple):
    """The most levels of nesting, and the most values and keys, of a text."""

    depth: int
    values: int


class _Counts(NamedTuple):
    """The counts of a text outside of its strings."""

    commas: int
    colons: int
    containers: int
    quotes: int

    @property
    def values(self) -> int:
        """The most values and keys that there may be."""
        return 1 + self.commas + self.colons + self.containers

    @property
    def bytes(self) -> int:
        """The memory that the text takes at most once it is parsed, besides that of its texts."""
        return VALUE_BYTES * self.values + CONTAINER_BYTES * (self.containers + self.colons)


def parse_json(text: bytes, limits: JsonLimits, memory: Reservation | None = None) -> Any:
    """Parse a JSON text, which may hold bare NaN and Infinity.

    `memory` is grown by what the parsed text takes. Raises `InvalidRequest` for a text that is not
    JSON or nests too deep, `TooLarge` for one with too many values or that would take too long, and
    `MemoryFull`.
    """
    size = check_json(text, limits) + parsed_bytes(text)
    if memory is not None:
        memory.resize(memory.size + size, "a parsed body")
    try:
        return loads(text)
    except orjson.JSONDecodeError as error:
        reason = str(error)
    named = _contains(text, b"NaN") or _contains(text, b"Infinity")
    if named and len(text) > MAX_NAMED_BYTES:
        raise TooLarge(
            f"failed to parse the request JSON buffer: {reason}; JSON with NaN or Infinity may "
            f"have {MAX_NAMED_BYTES} bytes at most: send numbers as binary data"
        )
    try:
        if named:
            # Slower than orjson, but it reads NaN and Infinity.
            with alone(len(text)):
                value = json.loads(text.decode(), parse_float=_finite, parse_int=_whole)
            if b"\\u" in text:
                # It also reads lone surrogates, which no answer can carry: encoding them raises.
                json.dumps(value, ensure_ascii=False).encode()
            return value
    except (ValueError, RecursionError):
        pass
    raise InvalidRequest(f"failed to parse the request JSON buffer: {reason}")


def loads(text: bytes) -> Any:
    """Parse a JSON text whose bounds have been checked.

    Raises `orjson.JSONDecodeError`, and `MemoryFull` instead of letting orjson end the process.
    """
    if len(text) > SMALL_TEXT_BYTES:
        check_room(PARSER_FACTOR * len(text) + parsed_bytes(text), "a parsed body")
    if len(text) < ALONE_BYTES:  # the context would cost more than a small text
        return orjson.loads(text)
    with alone(len(text)):
        return orjson.loads(text)


@contextmanager
def alone(size: int) -> Iterator[None]:
    """Let no two helper threads parse large texts at a time, and pause after each.

    The event loop waits for no one: where it parses a text itself, that is done at once.
    """
    if size < ALONE_BYTES or asyncio._get_running_loop() is not None:
        yield
        return
    with _parsing:
        try:
            yield
        finally:
            time.sleep(PAUSE_SECONDS)


def parsed_bytes(text: bytes) -> int:
    """Return the most memory that the copy which orjson makes of a text, and its strings, take.

    One character beyond ASCII makes all those of its string take up to four bytes.
    """
    plain = text.isascii() and (b"\\" not in text or not _contains(text, b"\\u"))
    return (2 if plain else 5) * len(text)


def take_long_strings(text: bytes) -> tuple[bytes, dict[str, memoryview]]:
    """Take the long strings out of a text, so that little is left to parse.

    Returns the text with a short name in place of each, and their bytes by these names. Takes none
    out of a text with backslashes, where a quote may be part of a string.
    """
    if len(text) < LONG_STRING_BYTES or _contains(text, b"\\"):
        return text, {}
    if _count_of(text, b'"') > 2 * MOST_STRINGS:
        return text, {}
    nonce = token_hex(16)  # no string that a client sends can be one of the names
    view = memoryview(text)
    taken: dict[str, memoryview] = {}
    pieces: list[bytes | memoryview] = []
    done = position = 0
    while (start := text.find(b'"', position) + 1) and (end := text.find(b'"', start)) != -1:
        if end - start >= LONG_STRING_BYTES:
            name = f"{nonce}{len(taken)}"
            taken[name] = view[start:end]
            pieces += (view[done:start], name.encode())
            done = end
        position = end + 1
    return b"".join([*pieces, view[done:]]), taken


def _contains(text: bytes, mark: bytes) -> bool:
    """Return whether a text has these bytes, and let other threads run meanwhile.

    `in` would stop them for 75 ms with several bytes and a text of 24 MiB.
    """
    step = _AT_ONCE_BYTES
    more = step + len(mark) - 1
    return any(text.find(mark, start, start + more) >= 0 for start in range(0, len(text), step))


def _count_of(text: bytes, mark: bytes) -> int:
    """Count a character. Other threads may run between two pieces of a large text."""
    if len(text) <= SHORT_TEXT_BYTES:
        return text.count(mark)
    step = _AT_ONCE_BYTES
    if len(text) <= step and text.find(mark) < 0:
        return 0
    array = np.frombuffer(text, np.uint8)
    code = ord(mark)
    return sum(
        [
            int(np.count_nonzero(array[start : start + step] == code))
            for start in range(0, len(array), step)
        ]
    )


def _whole(text: str) -> int | float:
    """Parse an integer as orjson does: beyond 64 bits it is a float.

    `int` would take long for one of thousands of digits.
    """
    if len(text) <= MOST_DIGITS:
        number = int(text)
        if -(2**63) <= number <= UINT64_MAX:
            return number
    return _finite(text)


def _finite(text: str) -> float:
    """Parse a number. Raises `ValueError` for one that a double would round to infinity."""
    number = float(text)
    if number in {inf, -inf}:
        raise ValueError(text)
    return number


def check_json(text: bytes, limits: JsonLimits) -> int:
    """Check the nesting and the size of a text before it is parsed.

    Takes linear time, and hardly any for a text with few marks. Returns the most bytes that the
    parsed text may take besides its strings. Raises what `parse_json` raises for the bounds.
    """
    if len(text) <= SHORT_TEXT_BYTES:  # as below, in a fifth of the time: most texts are short
        count = text.count
        containers, colons = count(b"[") + count(b"{"), count(b":")
        values = 1 + count(b",") + colons + containers
        if containers <= limits.depth and values <= limits.values:
            return VALUE_BYTES * values + CONTAINER_BYTES * (containers + colons)
    if len(text) <= SMALL_TEXT_BYTES:  # costs little, whatever it is
        counts = _count(text, 0)
        if counts.containers <= limits.depth and counts.values <= limits.values:
            return counts.bytes
    quotes = _count_of(text, b'"')
    counts = _count(text, quotes)  # those within strings too, which is quicker
    if (
        counts.containers > limits.depth
        or not _fits(counts, limits)
        or _cost(text, counts) > MAX_JSON_COST
    ):
        counts = _check_marks(text, limits, quotes)
        if (cost := _cost(text, counts)) > MAX_JSON_COST:
            raise TooLarge(
                f"the JSON of {len(text)} bytes, {counts.values} values and {quotes // 2} strings "
                f"takes too long to parse: its cost is {cost}, at most {MAX_JSON_COST} is accepted "
                "(a byte costs 1, or 2 with backslashes or non-ASCII characters, a value 24, a "
                "string 20 more): send tensors as binary data, and images as they are"
            )
    return counts.bytes


def _fits(counts: _Counts, limits: JsonLimits) -> bool:
    return (
        counts.values <= limits.values and counts.containers + counts.colons <= MAX_JSON_CONTAINERS
    )


def _cost(text: bytes, counts: _Counts) -> int:
    """Return what it costs to parse a text, as `MAX_JSON_COST` counts."""
    plain = text.isascii() and b"\\" not in text
    return (
        (1 if plain else 2) * len(text)
        + VALUE_COST * counts.values
        + STRING_COST * counts.quotes // 2
        + CONTAINER_COST * (counts.containers + counts.colons)
    )


def _count(text: bytes, quotes: int) -> _Counts:
    containers = _count_of(text, b"[") + _count_of(text, b"{")
    return _Counts(_count_of(text, b","), _count_of(text, b":"), containers, quotes)


@cache
def _level_steps() -> np.ndarray[Any, np.dtype[np.int8]]:
    """Return by how much each character changes the level of nesting."""
    steps = np.zeros(256, np.int8)
    steps[list(b"[{")] = 1
    steps[list(b"]}")] = -1
    return steps


def _check_marks(text: bytes, limits: JsonLimits, quotes: int) -> _Counts:
    """Count the marks outside of strings, up to the first that is too much."""
    counts = _Counts(0, 0, 0, quotes)
    level = 0
    for marks in _marks_outside_strings(text):
        counts = _Counts(*map(sum, zip(counts, _count(marks, 0), strict=True)))
        steps = np.frombuffer(marks.translate(None, b",:"), np.uint8)
        levels = np.cumsum(_level_steps()[steps], dtype=np.int64) + level
        if levels.size:
            if levels.max() > limits.depth:
                raise InvalidRequest(
                    f"JSON nesting depth exceeds maximum allowed limit ({limits.depth})"
                )
            level = int(levels[-1])
        if counts.containers + counts.colons > MAX_JSON_CONTAINERS:
            raise TooLarge(
                f"the JSON has more than {MAX_JSON_CONTAINERS} lists, objects and keys: send "
                "numbers as one flat list or as binary data"
            )
        if counts.values > limits.values:
            raise TooLarge(
                f"the JSON has more than {limits.values} values and keys (max_json_values): send "
                "numbers as binary data"
            )
    return counts


def _marks_outside_strings(text: bytes) -> Iterator[bytes]:
    """Yield the marks that follow an even number of quotes, in pieces.

    A regular expression would hold the interpreter for seconds; on a string that does not end, for
    a time that grows with the square of its length.
    """
    inside = False
    start = 0
    while start < len(text):
        end = start + _AT_ONCE_BYTES
        piece = text[start:end]
        if piece.endswith(b"\\"):
            # An odd number of backslashes belongs to the byte that follows.
            end += (len(piece) - len(piece.rstrip(b"\\"))) % 2
            piece = text[start:end]
        start = end
        if b'"' not in piece:
            if not inside:
                yield piece.translate(None, _NOT_A_MARK)
            continue
        if b"\\" in piece:
            # What remains of a run of backslashes stands before a character other than a quote.
            piece = piece.replace(rb"\\", b"").replace(rb"\"", b"")
        marks = np.frombuffer(piece.translate(None, _NOT_A_MARK), np.uint8)
        quotes = marks == ord('"')
        odd = (np.cumsum(quotes, dtype=np.uint8) & 1).astype(np.bool_)  # counted modulo 256
        if inside:
            odd = ~odd
        if odd.size:
            inside = bool(odd[-1])
        yield marks[~(odd | quotes)].tobytes()


def kind_of(value: Any) -> str:
    """Return JSON's name of a value's type."""
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
