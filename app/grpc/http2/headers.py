"""The headers of calls, decoded."""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hpack import Decoder, HPACKError

from .wire import (
    COMPRESSION_ERROR,
    METHOD_NOT_ALLOWED,
    UNSUPPORTED_MEDIA_TYPE,
    Http2Error,
    timeout_of,
)

KEPT_BLOCKS = 32
KEPT_BLOCK_BYTES = 512
KEPT_FIELDS_BYTES = 2048
"""Bounds of the blocks that a connection remembers, because its client repeats them."""

CONNECTION_FIELDS = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"upgrade"})
"""Fields of HTTP/1.1 that HTTP/2 forbids."""

NO_METADATA = frozenset({b"te", b"grpc-accept-encoding"})


class Head(NamedTuple):
    """The headers of a call, read.

    `timeout`: in seconds; None without one. `encoding`: how compressed messages are compressed.
    `refusal`: the HTTP status with which to refuse a request that is not gRPC's, else 0.
    `problem`: an error in the headers, in words, else "". `size`: bytes of names and values.
    """

    method: str
    metadata: tuple[tuple[str, str | bytes], ...]
    timeout: float | None
    encoding: bytes
    refusal: int
    problem: str
    size: int


class HeaderReader:
    """Decodes the header blocks of one connection.

    A client mostly sends the same block again and again. It means the same as long as the table
    that it refers to does not change.
    """

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: the most that a decoded block may have. Larger ones can't be decoded, and so
        end the connection.
        """
        self._decoder = Decoder(max_bytes)
        self._known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """Decode a block. Raises `Http2Error`."""
        known = self._known.get(block)
        if known is not None:
            return known
        table = self._decoder.header_table
        before = table.dynamic_entries[0] if table.dynamic_entries else None
        size = table.maxsize
        try:
            fields = [(bytes(name), bytes(value)) for name, value in self._decode(block)]
        except HPACKError:
            raise Http2Error(COMPRESSION_ERROR, "headers that can't be decoded") from None
        head = _head(fields)
        after = table.dynamic_entries[0] if table.dynamic_entries else None
        if after is not before or table.maxsize != size:
            self._known.clear()
        elif len(block) <= KEPT_BLOCK_BYTES and head.size <= KEPT_FIELDS_BYTES:
            if len(self._known) >= KEPT_BLOCKS:
                self._known.clear()
            self._known[block] = head
        return head

    def _decode(self, block: bytes) -> Iterable[tuple[bytes, bytes]]:
        return self._decoder.decode(block, raw=True)


def _head(fields: Sequence[tuple[bytes, bytes]]) -> Head:
    method, timeout, encoding, problem = "", None, b"identity", ""
    refusal = UNSUPPORTED_MEDIA_TYPE
    is_post = False
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name[:1] == b":":
            if name == b":path":
                method = value.decode("latin-1")
            elif name == b":method":
                is_post = value == b"POST"
        elif name == b"content-type":
            if value.startswith(b"application/grpc"):
                refusal = 0
        elif name == b"grpc-encoding":
            encoding = value
        elif name == b"grpc-timeout":
            timeout = timeout_of(value)
            if timeout is None:
                problem = "malformed grpc-timeout"
        elif name in CONNECTION_FIELDS or name != name.lower():
            problem = "malformed metadata: HTTP/2 has no upper case in names, and no such fields"
        elif name.endswith(b"-bin"):
            try:
                content = b64decode(value + b"=" * (-len(value) % 4), validate=True)
            except Base64Error:
                problem = "malformed metadata: a value of -bin that is not base64"
            else:
                metadata.append((name.decode("latin-1"), content))
        elif name not in NO_METADATA:
            metadata.append((name.decode("latin-1"), value.decode("latin-1")))
    if not is_post:
        refusal = METHOD_NOT_ALLOWED
    size = sum([len(name) + len(value) for name, value in fields])
    return Head(method, tuple(metadata), timeout, encoding, refusal, problem, size)
