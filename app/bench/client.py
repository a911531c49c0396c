"""A light HTTP/1.1 client for load: POSTs bodies to one address over keep-alive connections. No redirects, no proxies."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httptools

from .load import NO_ANSWER, Answer

ANSWER_TIMEOUT = 60.0
"""Seconds after which a request counts as not answered."""


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.open = False
        self._transport: Any = None
        self._answer: asyncio.Future[Answer] | None = None
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._timing = ""

    def request(self, head: bytes, body: bytes) -> asyncio.Future[Answer]:
        answer = self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines((head, body))
        return answer

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.close()

    def _end(self, answer: Answer) -> None:
        future, self._answer = self._answer, None
        if future is not None and not future.done():
            future.set_result(answer)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()
            self._end(Answer(NO_ANSWER, b""))

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._end(Answer(NO_ANSWER, b""))

    # httptools

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            return
        answer = Answer(status, b"".join(self._body), self._timing)
        if not self._parser.should_keep_alive():
            self.close()
        self._begin()
        self._end(answer)


class TimedConnection(Connection):
    """One that reads the header Server-Timing too. httptools calls `on_header` only where there is one: load need not pay for it."""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"server-timing":
            self._timing = value.decode("latin-1")


class HttpClient:
    """Its `send` is a `load.Send`. As many connections as requests wait for answers; the one used last is used next."""

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, *, timing: bool = False
    ) -> None:
        """`timing`: answers have their Server-Timing. Raises ValueError for what is no http or https address with a path."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path in ("", "/"):
            raise ValueError(
                f"{url!r} is no address to post to: expected something like http://127.0.0.1:8000/predict/digits"
            )
        self._host = parts.hostname
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        sent = {
            "Host": parts.netloc.rpartition("@")[2],
            "Content-Type": "application/octet-stream",
            **(headers or {}),
        }
        if any(not text.isprintable() for text in (path, *sent, *sent.values())):
            raise ValueError(
                "a header or the address holds a line break or another control character"
            )
        self._head = "".join(
            [f"POST {path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in sent.items())]
        ).encode()
        self._kind = TimedConnection if timing else Connection
        self._free: list[Connection] = []

    async def send(self, body: bytes) -> Answer:
        """One POST. `NO_ANSWER` as status: no connection, a broken answer, or none within `ANSWER_TIMEOUT`."""
        try:
            connection = await self._connection()
        except OSError:
            return Answer(NO_ANSWER, b"")
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                answer = await connection.request(
                    b"%sContent-Length: %d\r\n\r\n" % (self._head, len(body)), body
                )
        except TimeoutError:
            connection.close()
            return Answer(NO_ANSWER, b"")
        except BaseException:
            connection.close()
            raise
        if connection.open:
            self._free.append(connection)
        return answer

    async def close(self) -> None:
        while self._free:
            self._free.pop().close()
        await asyncio.sleep(0)  # transports close in the loop's next turn

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.open:  # else the server closed it while it was idle
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            self._kind, self._host, self._port, ssl=self._tls or None
        )
        return connection
