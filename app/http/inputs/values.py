"""Values of each kind, from JSON and from bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from penstock.backends.errors import InvalidRequest
from penstock.backends.memory import Reservation
from penstock.pipelines.config.json_schema import JsonSchema

from ..json_text import (
    SMALL_TEXT_BYTES,
    JsonLimits,
    check_json,
    kind_of,
    loads,
    parsed_bytes,
    take_long_strings,
)
from .arrays import array_of
from .base64_text import decode_base64_or_url
from .declared import Tensor
from .text import UTF_8, decode, decoded_bytes

SLOT_BYTES = 64
"""An item of a list, besides what it refers to."""

EXPECTED_JSON = {
    "image": "a base64 string",
    "bytes": "a base64 string",
    "text": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "list": "an array",
    "tensor": "nested arrays of numbers",
    "json": "any JSON",
}
"""What stands for a value of each kind in JSON."""

MAX_INT64 = 2**63 - 1
MAX_EXACT_FLOAT = 2**53
"""The largest float up to which every whole number is one."""

_STRING_KINDS = frozenset({"image", "bytes", "text"})
_PLAIN_KINDS = _STRING_KINDS | {"integer", "number", "boolean"}


class Reading:
    """One request's body while it is read.

    `memory` holds the body, and grows by what is parsed from it. `parsed` are the bytes that JSON
    values of the item hold, at most. `checked` says that values have been checked against a
    schema. `taken` are the long strings of the JSON by the names that stand for them.
    """

    __slots__ = ("checked", "limits", "memory", "parsed", "taken")

    def __init__(self, memory: Reservation, limits: JsonLimits) -> None:
        self.memory = memory
        self.limits = limits
        self.parsed = 0
        self.checked = False
        self.taken: dict[str, memoryview] = {}

    def parse(self, text: bytes, subject: str, expected: str, *, plain: bool = False) -> Any:
        """Parse JSON. `subject` names it in errors, `expected` says what it should be.

        `plain`: all its strings are values that `value_of_json` reads, so that long ones need not
        be parsed. Raises `InvalidRequest`, `TooLarge`, `MemoryFull`.
        """
        size = len(text)
        if plain:
            text, self.taken = take_long_strings(text)
        parsed = check_json(text, self.limits) + parsed_bytes(text)
        self.parsed += parsed
        if size > SMALL_TEXT_BYTES:  # of a small one only what stays of it is counted
            # Besides the body: the document, and, with `plain`, the bytes in its strings.
            more = parsed + (size if plain else 0)
            self.memory.resize(self.memory.size + more, "a parsed body")
        try:
            return loads(text)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(
                f"{subject} is not valid JSON: {error}; expected {expected}"
            ) from None


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Return whether all strings in the JSON of these inputs are whole values of theirs."""
    return all(_item_kind(tensor) in _PLAIN_KINDS for tensor in tensors)


def _item_kind(tensor: Tensor) -> str:
    return tensor.kind if tensor.items is None else _item_kind(tensor.items)


def value_of_json(expected: Tensor, value: Any, name: str, reading: Reading) -> Any:
    """Return the value of an input, from its JSON value. `name` stands for it in errors.

    Raises `InvalidRequest` for a value of another kind.
    """
    kind = expected.kind
    if kind == "json":
        return value if expected.schema is None else checked(expected.schema, value, name, reading)
    if kind in _STRING_KINDS:
        if type(value) is not str:
            raise wrong_kind(expected, value, name)
        long = reading.taken.get(value) if reading.taken else None
        if kind == "text":
            return value if long is None else _text(long, name, reading)
        try:
            return decode_base64_or_url(value if long is None else long)
        except ValueError as error:
            raise InvalidRequest(f"{name!r} is {error}") from None
    if kind == "tensor":
        return array_of(value, expected, name)
    if kind == "list":
        if type(value) is not list:
            raise wrong_kind(expected, value, name)
        items = expected.items
        assert items is not None
        return [
            value_of_json(items, item, f"{name}[{index}]", reading)
            for index, item in enumerate(value)
        ]
    if kind == "integer":
        return _integer(expected, value, name)
    if type(value) not in _TYPES[kind]:
        raise wrong_kind(expected, value, name)
    return value


def _integer(expected: Tensor, value: Any, name: str) -> int:
    """Return the whole number that a JSON number is. Raises `InvalidRequest`."""
    if type(value) is float and value.is_integer():
        if abs(value) > MAX_EXACT_FLOAT:  # the parser makes floats of integers above 64 bits too
            raise InvalidRequest(
                f"{name!r} is about {value:g}, expected a whole number of 64 bits, without a "
                "fraction or an exponent"
            )
        return int(value)
    if type(value) is not int:
        raise wrong_kind(expected, value, name)
    if value > MAX_INT64:  # the parser also reads unsigned ones
        raise InvalidRequest(f"{name!r} is {value}, expected at most {MAX_INT64}")
    return value


def checked(schema: JsonSchema, value: Any, name: str, reading: Reading) -> Any:
    """Return the JSON value as its schema makes it. Raises `InvalidRequest`, `MemoryFull`."""
    if not reading.checked:
        # pydantic models write what was parsed once more, with their defaults.
        reading.checked = True
        reading.memory.resize(reading.memory.size + reading.parsed, "a checked body")
    return schema.check(value, name)


_TYPES: dict[str, set[type]] = {"integer": {int}, "number": {int, float}, "boolean": {bool}}


def wrong_kind(expected: Tensor, value: Any, name: str) -> InvalidRequest:
    return InvalidRequest(
        f"{name!r} is a JSON {kind_of(value)}, expected {EXPECTED_JSON[expected.kind]} "
        f'(kind = "{expected.kind}")'
    )


def value_of_bytes(
    expected: Tensor, content: bytes, name: str, reading: Reading, charset: str = UTF_8
) -> Any:
    """Return the value of an input, from bytes that are the value itself.

    Kinds other than image, bytes and text are JSON. Raises `InvalidRequest`.
    """
    kind = expected.kind
    if kind in {"image", "bytes"}:
        return content
    if kind == "text":
        return _text(content, name, reading, charset)
    document = reading.parse(
        content, repr(name), f'{EXPECTED_JSON[kind]} (kind = "{kind}")', plain=is_plain([expected])
    )
    return value_of_json(expected, document, name, reading)


def whole_text(body: bytes, name: str, memory: Reservation, charset: str) -> str:
    """Decode a body that is input `name`. `memory` has the body, and then the text alone."""
    held = decoded_bytes(body)
    if held > SMALL_TEXT_BYTES:
        memory.resize(len(body) + held, "texts")
    text = decode(body, name, charset)
    if held != len(body):
        held = (1 if text.isascii() else 4) * len(text)
    if held != memory.size:
        memory.resize(held, "texts")
    return text


def _text(content: bytes | memoryview, name: str, reading: Reading, charset: str = UTF_8) -> str:
    content = bytes(content)
    reading.memory.resize(reading.memory.size + decoded_bytes(content), "texts")
    return decode(content, name, charset)


def held_bytes(expected: Tensor, value: Any) -> int:
    """Return the bytes that a value holds, besides what was parsed for it (`Reading.parsed`)."""
    if value is None:
        return 0
    kind = expected.kind
    if kind in {"image", "bytes"}:
        return len(value)
    if kind == "text":
        return (1 if value.isascii() else 4) * len(value)
    if kind == "tensor":
        size: int = value.nbytes
        return size
    if kind == "list":
        items = expected.items
        assert items is not None
        return sum([held_bytes(items, item) for item in value]) + SLOT_BYTES * len(value)
    return 0


def keeps_document(tensors: Sequence[Tensor]) -> bool:
    """Return whether an item of these inputs keeps what was parsed from JSON."""
    return any(
        _item_kind(tensor) == "json"
        or (_item_kind(tensor) == "tensor" and not (tensor.datatype and tensor.datatype.size))
        for tensor in tensors
    )
