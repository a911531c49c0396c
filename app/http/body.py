"""Bodies of requests, read within bounds. inputs/ finds the values in them."""

from __future__ import annotations

import io
from functools import lru_cache
from math import inf

from starlette.types import Message, Receive, Scope

from penstock.backends.errors import TooLarge
from penstock.backends.memory import Reservation, budget

from .helper_thread import on_helper_thread

BLOCK_BYTES = 1 << 20

JOIN_OFF_LOOP_BYTES = 1 << 23
"""Bodies of more bytes are joined on a helper thread: 60 MiB take 35 ms."""

SMALL_BODY_BYTES = 1 << 20
SPARE = 0.25
"""The part of the memory of all requests that bodies above `SMALL_BODY_BYTES` may not take."""

MAX_DISCARDED_BYTES = 1 << 18
"""The most bytes of a refused body that are read and thrown away to keep the connection.

Go's server reads as much.
"""


class ClientLeft(Exception):  # noqa: N818  an event, not an error
    """Raised when the client closes the connection before its request is complete."""


def reserve_body(length: bytes, limit: int, memory: Reservation) -> None:
    """Reserve the memory of a body with this Content-Length.

    Call it before the body is read, or asked for (100-continue). Raises `TooLarge` above `limit`
    bytes, and `MemoryFull`. Large bodies leave some memory to small ones: slow uploads must not
    shut out everyone else.
    """
    size = announced_bytes(length)
    if size > limit:
        raise TooLarge(
            f"the body has {length[:20].decode('latin-1')} bytes, at most {limit} are accepted "
            "(max_body)"
        )
    spare = int(budget.limit * SPARE) if size > SMALL_BODY_BYTES else 0
    memory.resize(int(size), "a body", spare)


def small_body(length: bytes | None) -> int:
    """Return the size of a small body with this Content-Length; 0 for any other."""
    size = inf if length is None else announced_bytes(length)
    return int(size) if size <= SMALL_BODY_BYTES else 0


def must_close(scope: Scope) -> bool:
    """Return whether the connection must close after an answer given before the body was read.

    The server reads on and throws away what comes, which is cheap if it is little. The connection
    closes instead for a large body, for one of unknown length, and if the client waits for
    100-continue before it sends the body: then the server can't know whether the body will come.
    """
    if scope.get("http_version", "1.1") >= "2":
        return False  # there a request is a stream of its own
    headers = dict(scope["headers"])
    if b"content-length" in headers:
        return b"expect" in headers or not is_discarded(headers[b"content-length"])
    return b"transfer-encoding" in headers


def is_discarded(length: bytes | None) -> bool:
    """Return whether a body of this Content-Length is read even if its request is refused."""
    return length is not None and announced_bytes(length) <= MAX_DISCARDED_BYTES


@lru_cache(256)
def announced_bytes(length: bytes) -> float:
    """Parse a Content-Length.

    Returns infinity if it is not a number or has 20 digits or more after its first zeros. `int`
    refuses texts of more than 4300 digits.
    """
    if not length.isdigit():
        return inf
    digits = length.lstrip(b"0")
    return int(digits or b"0") if len(digits) < 20 else inf


async def read_rest(first: Message, receive: Receive, limit: int, memory: Reservation) -> bytes:
    """Read the whole body, whose first message is `first`.

    `memory` then has the bytes of the body. Raises `TooLarge` above `limit` bytes, `MemoryFull`,
    `ClientLeft`.
    """
    message = first
    body = Pieces()
    while True:
        if message["type"] != "http.request":
            raise ClientLeft
        body.write(message.get("body", b""))
        if body.size > limit:
            raise TooLarge(f"the body has more than {limit} bytes (max_body)")
        memory.cover(body.size, "a body")
        if not message.get("more_body"):
            return await body.joined(memory)
        message = await receive()


class Pieces:
    """Bytes that come piece by piece, `size` so far, kept in blocks until they are joined.

    One buffer that grows would be moved again and again and leave holes, which took half as much
    memory again with several large bodies at once (measured).
    """

    __slots__ = ("_blocks", "_last", "size")

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._last = io.BytesIO()
        self.size = 0

    def write(self, piece: bytes) -> None:
        self.size += len(piece)
        self._last.write(piece)
        if self._last.tell() >= BLOCK_BYTES:
            self._blocks.append(self._last.getvalue())
            self._last = io.BytesIO()

    def join(self, memory: Reservation) -> bytes:
        """Return all bytes. `memory`, which has them, is grown for the moment that both are there.

        Raises `MemoryFull`.
        """
        if not self._blocks:
            return self._last.getvalue()
        memory.resize(memory.size + self.size, "a body")
        # Not by bytes.join, which stops all other threads until it is done.
        whole = io.BytesIO(bytes(self.size))
        for block in (*self._blocks, self._last.getvalue()):
            whole.write(block)
        self._blocks.clear()
        memory.resize(memory.size - self.size, "a body")
        return whole.getvalue()

    def clear(self) -> None:
        """Let go of the bytes."""
        self._blocks.clear()
        self._last = io.BytesIO()

    async def joined(self, memory: Reservation) -> bytes:
        """Join the bytes as `join` does, many of them on a helper thread."""
        if self.size <= JOIN_OFF_LOOP_BYTES:
            return self.join(memory)
        return await on_helper_thread(self.join, memory)
