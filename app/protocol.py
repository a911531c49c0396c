"""uvicorn's HTTP protocol, but head and body of an answer leave in one write.

uvicorn writes them one after the other, and so does the loop: two system calls and two packets for an answer of a few hundred bytes.
Each costs 4 to 5 µs, a tenth of what a small request costs in all (docs/performance.md).
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGE = 1 << 16
"""Bytes from which a body is not copied to stand behind its head: both are handed over, and the loop gathers them."""


class HttpProtocol(HttpToolsProtocol):
    """Given to `uvicorn.Config(http=...)`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(HeadHolder(transport, self.loop))  # type: ignore[arg-type]


class HeadHolder:
    """A transport that keeps a response's head back until its body comes, at most to the end of this iteration of the loop.

    The end of the iteration is for answers whose body comes later (streams): their clients must not wait for the head.
    """

    __slots__ = ("_head", "_loop", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        self.is_closing = transport.is_closing  # asked at every request; all else goes by __getattr__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        head = self._head
        if head is not None:
            self._head = None
            if len(data) < LARGE:
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
