"""uvicorn's HTTP protocol, but head and body of an answer leave in one write, heads of requests are bounded in size and time, and an offer
to upgrade costs no request its body.

uvicorn writes them one after the other, and so does the loop: two system calls and two packets for an answer of a few hundred bytes.
Each costs 4 to 5 µs, a tenth of what a small request costs in all (docs/explanation/performance.md).
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

JOIN_BELOW_BYTES = 1 << 16
"""Bytes from which a body is not copied to stand behind its head: both are handed over, and the loop gathers them."""


MAX_HEAD_BYTES = 1 << 19
"""Bytes that may come with none of a body among them: of a head, of trailers, of extensions of chunks. More than the loop reads at once."""

HEAD_TIMEOUT_SECONDS = 30.0
"""Seconds that a client has for a request's head, from its first byte; for the first of a connection from the beginning."""

_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class HttpProtocol(HttpToolsProtocol):
    """Given to `uvicorn.Config(http=...)`."""

    _in_head = False
    _in_message = False
    _since_body = 0  # bytes
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(HeadHolder(transport, self.loop))  # type: ignore[arg-type]
        self._head_timer = self.loop.call_later(
            HEAD_TIMEOUT_SECONDS, self.timeout_keep_alive_handler
        )

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

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    # Java's HttpClient and `curl --http2` offer HTTP/2 with a request (`Upgrade: h2c`). A server may ignore that (RFC 9110, 7.8), but
    # httptools takes what follows such a head for the other protocol: the body would be lost. So it is read again, without the offer.

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
        """A request has not come to its end with these bytes."""
        self._since_body += size
        if self._since_body > MAX_HEAD_BYTES:
            self.logger.warning(
                "a request's head, or its trailers, are larger than %d bytes", MAX_HEAD_BYTES
            )
            if self._in_head and (self.cycle is None or self.cycle.response_complete):
                self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()
        elif self._in_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(
                HEAD_TIMEOUT_SECONDS, self.timeout_keep_alive_handler
            )

    def on_chunk_header(self) -> None:
        # Called for chunked bodies only. Chunks that come together are one message to the app, which can't count them.
        scope: Any = self.scope
        scope["penstock.chunks"] = scope.get("penstock.chunks", 0) + 1

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            self.headers = []  # the scope has its own; what comes now are trailers, which must not be taken for headers (RFC 9110, 6.5.1)

    def on_message_complete(self) -> None:
        self._in_message = False
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _refuse(self) -> None:
        message = "Invalid HTTP request received."
        self.logger.warning(message)
        self.send_400_response(message)

    def _head_without_offer(self) -> bytes:
        lines = [b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url)]
        for name, value in self.headers:
            if name == b"connection":
                kept = [
                    each
                    for each in value.split(b",")
                    if each.strip().lower() not in {b"upgrade", b"http2-settings"}
                ]
                lines += [b"connection: " + b",".join(kept)] if kept else []
            elif name not in {b"upgrade", b"http2-settings"}:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])


class HeadHolder:
    """A transport that keeps a response's head back until its body comes, at most to the end of this iteration of the loop.

    The end of the iteration is for answers whose body comes later (streams): their clients must not wait for the head.
    """

    __slots__ = ("_head", "_loop", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        self.is_closing = (
            transport.is_closing
        )  # asked at every request; all else goes by __getattr__

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
