"""Frames and header blocks that a server writes, and what it reads of gRPC's headers.

https://www.rfc-editor.org/rfc/rfc9113, https://www.rfc-editor.org/rfc/rfc7541,
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION = 9

MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 3, 4, 5, 6
"""Settings."""

LEAST_GOAWAY_BYTES = 8
SETTING_BYTES, PING_BYTES, UPDATE_BYTES, PRIORITY_BYTES = 6, 8, 4, 5

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 5, 6, 7, 8, 9
ENHANCE_YOUR_CALM = 11

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
PREFIX = bytes(5)
"""As long as what is before each message: whether it is compressed, and its length."""
LEAST_FRAME_BYTES = 1 << 14
MOST_FRAME_BYTES = (1 << 24) - 1
MOST_WINDOW = (1 << 31) - 1
DEFAULT_WINDOW = (1 << 16) - 1

SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class Http2Error(Exception):
    """Raised for what ends a connection, with an error code of HTTP/2."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return b"%b%c%c%b%b" % (
        len(payload).to_bytes(3, "big"),
        kind,
        flags,
        stream.to_bytes(4, "big"),
        payload,
    )


def head(size: int, kind: int, flags: int, stream: int) -> bytes:
    """Return a frame's head, for a payload that follows."""
    return (size << 16 | kind << 8 | flags).to_bytes(5, "big") + stream.to_bytes(4, "big")


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    pairs = [number.to_bytes(2, "big") + value.to_bytes(4, "big") for number, value in values]
    return frame(SETTINGS, 0, 0, b"".join(pairs))


def reset(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def go_away(last: int, code: int, reason: str) -> bytes:
    payload = last.to_bytes(4, "big") + code.to_bytes(4, "big") + reason.encode()
    return frame(GOAWAY, 0, 0, payload)


def window_update(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def _integer(value: int, bits: int) -> bytes:
    """Return an integer of HPACK with a prefix of `bits` bits, of a byte without other bits."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((value,))
    encoded = bytearray((most,))
    value -= most
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def literals(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a block of fields that enter no table."""
    return b"".join(
        [
            b"\0%b%b%b%b" % (_integer(len(name), 7), name, _integer(len(value), 7), value)
            for name, value in fields
        ]
    )


OK_HEADERS = b"\x88" + literals(  # 0x88: ":status: 200" of the static table
    [(b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"identity, deflate, gzip")]
)
"""The headers of every answer."""


METHOD_NOT_ALLOWED, UNSUPPORTED_MEDIA_TYPE = 405, 415
PLAIN = b"This port speaks gRPC: POST with the content type application/grpc, by HTTP/2.\n"
NO_HTTP_2 = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%b"
) % (len(PLAIN), PLAIN)
"""The answer to a client that does not speak HTTP/2."""


def plain_answer(stream: int, status: int) -> bytes:
    """Return the frames that answer a request that is not gRPC's."""
    block = literals([(b":status", b"%d" % status), (b"content-type", b"text/plain")])
    return (
        head(len(block), HEADERS, END_HEADERS, stream)
        + block
        + frame(DATA, END_STREAM, stream, PLAIN)
        + reset(stream, NO_ERROR)
    )


def answer_head(stream: int) -> bytes:
    """Return the frame with which an answer begins."""
    return head(len(OK_HEADERS), HEADERS, END_HEADERS, stream) + OK_HEADERS


def end(
    stream: int,
    code: int,
    detail: str,
    metadata: Iterable[tuple[str, str]],
    *,
    is_first: bool,
) -> bytes:
    """Return the frame that ends an answer by a status. `is_first`: nothing was sent before."""
    fields = [(b"grpc-status", b"%d" % code)]
    if detail:
        fields.append((b"grpc-message", _percent(detail)))
    fields += [(key.encode(), value.encode()) for key, value in metadata]
    block = literals(fields)
    if is_first:
        block = OK_HEADERS + block
    return head(len(block), HEADERS, END_HEADERS | END_STREAM, stream) + block


_UNSAFE = re.compile(rb"[^ -$&-~]")


def _percent(text: str) -> bytes:
    return _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], text.encode())


def timeout_of(value: bytes) -> float | None:
    """Return the seconds of `grpc-timeout`; None if it is malformed."""
    number, unit = value[:-1], SECONDS.get(value[-1:])
    if unit is None or not number.isdigit() or len(number) > 8:
        return None
    return int(number) * unit
