"""`HttpProtocol`: uvicorn's protocol class for HTTP/1.1, with three changes.

The head and the body of an answer leave in one write. Heads of requests are bounded in size and in
time. An offer to upgrade does not cost a request its body.

uvicorn writes head and body one after the other, and so does the loop: two system calls and two
packets for an answer of a few hundred bytes. Each costs 4 to 5 µs, a tenth of all that a small
request costs (docs/explanation/performance.md).

The class overrides methods of uvicorn's that are not documented. So pyproject.toml names the
versions that were tried, and tests/app/server/test_uvicorn_protocol.py lists what is overridden.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

JOIN_BELOW_BYTES = 1 << 16
"""A smaller body is copied to its head, for one write.

With a larger one the loop gets both pieces, and gathers them.
"""

MAX_HEAD_BYTES = 1 << 19
"""The most bytes that may come without a byte of a body: a head, trailers, extensions of chunks.

It is more than the loop reads at once.
"""

HEAD_TIMEOUT_SECONDS = 30.0
"""The seconds that a client has for the head of a request, from the head's first byte.

For the first request of a connection they run from the beginning of the connection.
"""

_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\n"
    b"connection: close\r\n"
    b"\r\n"
)


class HttpProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=HttpProtocol)`."""

    _in_head = False
    _in_message = False
    _since_body = 0  # bytes since the last byte of a body
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(HeadHolder(transport, self.loop))  # type: ignore[arg-type]
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._since_body = 0

    def on_body(self, body: bytes) -> None:
        self._since_body = 0
        super().on_body(body)

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(
            HEAD_TIMEOUT_SECONDS, self.timeout_keep_alive_handler
        )

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    # Java's HttpClient and `curl --http2` offer HTTP/2 with a request (`Upgrade: h2c`). A server
    # may ignore that (RFC 9110, 7.8), but httptools takes what follows such a head for HTTP/2: the
    # body would be lost. So the head is parsed again, without the offer.

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
            if self._in_message:
                self._check_progress(len(data))
        except httptools.HttpParserError:
            self._refuse()
        except httptools.HttpParserUpgrade as upgrade:
            if self.parser.get_method() == b"CONNECT":
                self._refuse()
            else:
                head = self._head_without_offer()
                self.parser = httptools.HttpRequestParser(self)
                self.data_received(head + data[upgrade.args[0] :])

    def _check_progress(self, size: int) -> None:
        """Bound a request that has not ended with the `size` bytes that came just now."""
        self._since_body += size
        if self._since_body > MAX_HEAD_BYTES:
            self.logger.warning(
                "the head of a request, or its trailers, exceed %d bytes: connection closed",
                MAX_HEAD_BYTES,
            )
            if self._in_head and (self.cycle is None or self.cycle.response_complete):
                self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()
        elif self._in_head and self._head_timer is None:
            self._start_head_timer()

    def on_chunk_header(self) -> None:
        # Called for chunked bodies only. Chunks that arrive together are one message to the app, so
        # the app can't count them.
        scope: Any = self.scope
        scope["penstock.chunks"] = scope.get("penstock.chunks", 0) + 1

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            # The scope has the list. The parser adds trailers to this one, and they must not be
            # taken for headers (RFC 9110, 6.5.1).
            self.headers = []

    def on_message_complete(self) -> None:
        self._in_message = False
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _refuse(self) -> None:
        message = "Invalid HTTP request received."
        self.logger.warning(message)
        self.send_400_response(message)

    def _head_without_offer(self) -> bytes:
        offers = {b"upgrade", b"http2-settings"}
        lines = [b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url)]
        for name, value in self.headers:
            if name == b"connection":
                kept = [
                    option for option in value.split(b",") if option.strip().lower() not in offers
                ]
                lines += [b"connection: " + b",".join(kept)] if kept else []
            elif name not in offers:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])


class HeadHolder:
    """A transport that holds the head of a response until its body is written.

    It holds it at most to the end of this iteration of the loop: clients of an answer whose body
    comes later (a stream) must not wait for the head.
    """

    __slots__ = ("_head", "_loop", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        # uvicorn calls it at every request: as an attribute it spares the call of __getattr__.
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        head = self._head
        if head is not None:
            self._head = None
            if len(data) < JOIN_BELOW_BYTES:
                self._transport.write(head + data)
            else:
                self._transport.writelines((head, data))
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def _flush(self) -> None:
        head = self._head
        if head is not None:
            self._head = None
            self._transport.write(head)

    def close(self) -> None:
        self._flush()
        self._transport.close()
