"""HTTP/1.1 connections to Triton, over which requests are forwarded as they come.

httptools parses, as it does for our own server. httpx and httpcore take 0.4 to 0.5 ms of processor
time a request (docs/how-to/shadow.md), which a proxy on the way of live traffic can't afford; they
also decode and follow what has to pass unchanged. Nothing is decoded here except chunks, and no
redirect is followed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Any

import httptools

from .options import Place

CONNECT_SECONDS = 5.0
HEAD_BYTES = 1 << 18
"""The longest head of an answer."""

BUFFERED_BYTES = 1 << 18
"""Reading stops while so much of an answer waits for the client."""

Fields = Sequence[tuple[bytes, bytes]]


class UpstreamError(Exception):
    """Raised when Triton gives no whole answer. `unsent`: it can't have seen the request.

    `late`: it was given up after the time-out.
    """

    def __init__(self, message: str, *, unsent: bool = False, late: bool = False) -> None:
        super().__init__(message)
        self.unsent = unsent
        self.late = late


class UpstreamConnection(asyncio.Protocol):
    """A connection that carries one request at a time."""

    def __init__(self) -> None:
        self.open = False
        self.used = False  # it has carried a request before this one
        self.status = 0
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.has_head = False
        self._transport: Any = None
        self._parser: Any = None
        self._pieces: deque[bytes] = deque()
        self._buffered = 0
        self._head_bytes = 0
        self._has_length = False
        self._keeps_alive = False
        self._is_head = False
        self._error: UpstreamError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._writable = True
        self._paused = False

    def begin(self, head: bytes, body: bytes, *, is_head: bool) -> None:
        """Send the head of a request, and the body or the beginning of it."""
        self._parser = httptools.HttpResponseParser(self)
        self.status, self.fields, self.complete, self.has_head = 0, [], False, False
        self._pieces.clear()
        self._buffered = self._head_bytes = 0
        self._has_length = False
        self._is_head = is_head
        self._transport.writelines((head, body) if body else (head,))

    async def write(self, data: bytes, seconds: float) -> None:
        """Send more of the body, and wait while the connection is full. Raises `UpstreamError`."""
        if not self.open:
            return
        self._transport.write(data)
        while not self._writable and self.open and not self.has_head:
            self._writer = asyncio.get_running_loop().create_future()
            await self._within(self._writer, seconds, "it took nothing of the body")

    async def head(self, seconds: float) -> None:
        """Wait for the head of the answer, `status` and `fields`. Raises `UpstreamError`."""
        while not self.has_head:
            await self._wait(seconds)

    async def piece(self, seconds: float) -> bytes:
        """Return the next piece of the answer's body; b"" at its end. Raises `UpstreamError`."""
        while not self._pieces:
            if self.complete:
                return b""
            await self._wait(seconds)
        if len(self._pieces) == 1:
            piece = self._pieces.popleft()
        else:
            piece = b"".join(self._pieces)
            self._pieces.clear()
        self._buffered = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return piece

    async def _wait(self, seconds: float) -> None:
        if self._error is not None:
            raise self._error
        if not self.open:
            raise UpstreamError("it has closed the connection without a whole answer")
        self._reader = asyncio.get_running_loop().create_future()
        await self._within(self._reader, seconds, "no answer came")

    async def _within(self, news: asyncio.Future[None], seconds: float, otherwise: str) -> None:
        try:
            async with asyncio.timeout(seconds):
                await news
        except TimeoutError:
            self.close()
            raise UpstreamError(f"{otherwise} within {seconds:g} s", late=True) from None

    @property
    def is_over(self) -> bool:
        """True once the whole answer has come and has been taken."""
        return self.complete and not self._pieces

    def may_stay(self) -> bool:
        """Return whether the connection can carry another request, after a whole answer."""
        return self.open and self.complete and self._keeps_alive

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            if self._transport.get_write_buffer_size():  # `close` would wait until it is sent
                self._transport.abort()
            else:
                self._transport.close()
        self._wake()

    def _wake(self) -> None:
        for future in (self._reader, self._writer):
            if future is not None and not future.done():
                future.set_result(None)
        self._reader = self._writer = None

    def _fail(self, message: str) -> None:
        self._error = UpstreamError(message)
        self.close()

    # called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.open = True

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self.complete:
            self.close()  # it speaks without being asked
            return
        if not self.has_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._fail(f"the head of its answer has more than {HEAD_BYTES} bytes")
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("it wants to speak another protocol than HTTP/1.1")
        except httptools.HttpParserError as error:
            if not self.complete:
                self._fail(f"its answer is not HTTP/1.1: {error}")
        if self._buffered > BUFFERED_BYTES and not self._paused and self.open:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """Close the connection: what follows is `connection_lost`."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self.has_head and not self.complete and not self._has_length and exc is None:
            self.complete = True  # the end of the connection ends the body
        elif not self.complete and self._error is None:
            unsent = self.used and not self._head_bytes
            self._error = UpstreamError(
                "it has closed the connection without a whole answer", unsent=unsent
            )
        self._wake()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._wake()

    # called by httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return
        self.has_head = True
        self._keeps_alive = self._parser.should_keep_alive()
        if self._is_head or self.status in (204, 304):
            self.complete = True

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self._pieces.append(body)
            self._buffered += len(body)

    def on_message_complete(self) -> None:
        if self.status < 200:  # informational: the answer follows
            self.fields, self._has_length = [], False
            return
        self.complete = True


class Upstream:
    """Triton's HTTP server: its connections, of which the latest free one is used first."""

    def __init__(self, place: Place, timeout: float) -> None:
        """`timeout`: seconds without a byte after which a request is given up."""
        self.place = place
        self.timeout = timeout
        self._free: list[UpstreamConnection] = []
        self._context = ssl.create_default_context() if place.tls else None

    async def connection(self, *, fresh: bool = False) -> UpstreamConnection:
        """Return a connection. `fresh`: none that has been used. Raises `UpstreamError`."""
        while self._free and not fresh:
            connection = self._free.pop()
            if connection.open:
                connection.used = True
                return connection
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(
                    UpstreamConnection, self.place.host, self.place.port, ssl=self._context
                )
        except TimeoutError:
            message = f"no connection within {CONNECT_SECONDS:g} s"
            raise UpstreamError(message, unsent=True) from None
        except OSError as error:
            message = error.strerror or str(error)
            raise UpstreamError(message, unsent=True) from None
        return connection

    def give_back(self, connection: UpstreamConnection) -> None:
        """Take a connection back, to use it again if its answer is whole and it stays open."""
        if connection.may_stay():
            self._free.append(connection)
        else:
            connection.close()

    async def fetch(self, path: bytes, seconds: float, most: int) -> tuple[int, bytes]:
        """Return the status and the body, of at most so many bytes, of a GET.

        Raises `UpstreamError`.
        """
        place = self.place
        connection = await self.connection(fresh=True)
        try:
            lines = b"GET %b%b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n"
            head = lines % (place.path.encode(), path, place.authority.encode())
            connection.begin(head, b"", is_head=False)
            await connection.head(seconds)
            body = bytearray()
            while piece := await connection.piece(seconds):
                body += piece
                if len(body) > most:
                    raise UpstreamError(f"its answer has more than {most} bytes")
            return connection.status, bytes(body)
        finally:
            connection.close()

    def close(self) -> None:
        while self._free:
            self._free.pop().close()
