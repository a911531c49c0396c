"""Protobuf's wire format, as far as it takes to leave tensors out of a parser's copies.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import NamedTuple

from penstock.backends.errors import InvalidRequest

MODEL_NAME, MODEL_VERSION, ID, RAW_INPUT_CONTENTS = 1, 2, 3, 7
"""Fields of ModelInferRequest."""

MAX_FIELDS = 1 << 12
"""The most fields of a request's outermost message. To read so many takes about 20 ms."""

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


class CutMessage(NamedTuple):
    """A ModelInferRequest, cut into its tensors and the rest.

    `text`: the message without its raw contents and its id. `layout`: the same with the lengths of
    the raw contents, so two messages of one layout differ in nothing but their id and their
    tensors' bytes. `contents`: views of the raw contents, in their order.
    """

    model: str
    version: str
    identity: str
    text: bytes
    layout: bytes
    contents: list[memoryview]


def cut(message: bytes | memoryview) -> CutMessage:
    """Cut a ModelInferRequest. Raises `InvalidRequest` if it is not a message."""
    view = memoryview(message)
    end = len(message)
    position = kept = fields = 0
    text: list[memoryview] = []
    layout: list[memoryview] = []
    contents: list[memoryview] = []
    names = {MODEL_NAME: b"", MODEL_VERSION: b"", ID: b""}
    try:
        while position < end:
            fields += 1
            if fields > MAX_FIELDS:
                raise InvalidRequest(
                    f"the request has more than {MAX_FIELDS} parameters, inputs and outputs"
                )
            start = position
            tag = message[position]
            position += 1
            if tag > 0x7F:
                tag, position = _varint(message, start)
            kind, number = tag & 7, tag >> 3
            if kind == _BYTES:
                size = message[position]
                if size > 0x7F:
                    size, position = _varint(message, position)
                else:
                    position += 1
                first, position = position, position + size
                if number == RAW_INPUT_CONTENTS:
                    text.append(view[kept:start])
                    layout.append(view[kept:first])
                    contents.append(view[first:position])
                    kept = position
                elif number in names:
                    names[number] = bytes(message[first:position])
                    if number == ID:
                        text.append(view[kept:start])
                        layout.append(view[kept:start])
                        kept = position
            elif kind == _VARINT:
                _, position = _varint(message, position)
            elif kind == _FIXED_64:
                position += 8
            elif kind == _FIXED_32:
                position += 4
            else:
                raise _malformed()
        if position != end:
            raise _malformed()
        model, version, identity = [name.decode() for name in names.values()]
    except (IndexError, UnicodeDecodeError):
        raise _malformed() from None
    if not kept:
        whole = bytes(message)
        return CutMessage(model, version, identity, whole, whole, contents)
    rest = view[kept:]
    return CutMessage(
        model, version, identity, b"".join((*text, rest)), b"".join((*layout, rest)), contents
    )


def _varint(message: bytes | memoryview, position: int) -> tuple[int, int]:
    """Return the integer at `position`, and where it ends. Raises IndexError at the end."""
    byte = message[position]
    position += 1
    if byte < 0x80:
        return byte, position
    value = byte & 0x7F
    for shift in range(7, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _malformed()


def _malformed() -> InvalidRequest:
    return InvalidRequest("the request is not a ModelInferRequest: its protobuf is malformed")


def varint(value: int) -> bytes:
    """Write an integer that is not negative."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
