"""A light HTTP/1.1 client that generates load.

It sends bodies to one URL over keep-alive connections, follows no redirects and uses no proxies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httptools

from .load import NO_ANSWER, Answer

ANSWER_TIMEOUT_SECONDS = 60.0
"""Time after which a request counts as not answered."""


class Connection(asyncio.Protocol):
    """A connection to the server, which carries one request at a time."""

    def __init__(self) -> None:
        self.open = False
        self._transport: Any = None
        self._answer: asyncio.Future[Answer] | None = None
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._timing = ""
        self._retry_after = 0.0

    def request(self, head: bytes, body: bytes) -> asyncio.Future[Answer]:
        """Send a request and return the future of its answer."""
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

    # called by asyncio

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

    # called by httptools

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            return  # informational: the answer follows
        answer = Answer(status, b"".join(self._body), self._timing, self._retry_after)
        if not self._parser.should_keep_alive():
            self.close()
        self._begin()
        self._end(answer)


class HeaderConnection(Connection):
    """A connection that also reads the headers Server-Timing and Retry-After.

    A class of its own, because httptools calls `on_header` wherever a class defines it, and load
    need not pay for that.
    """

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"server-timing":
            self._timing = value.decode("latin-1")
        elif name == b"retry-after" and value.isdigit():
            self._retry_after = float(value)


class HttpClient:
    """A client of one URL, whose `send` is a `load.Send`.

    It opens as many connections as requests wait at a time, and uses the latest free one first.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "POST",
        read_headers: bool = False,
        patience: float = ANSWER_TIMEOUT_SECONDS,
        local_address: str | None = None,
    ) -> None:
        """Prepare the head of the requests; connections are made on demand.

        `read_headers`: answers carry their Server-Timing and Retry-After. `patience`: seconds after
        which a request is given up and its connection closed. `local_address`: the address that
        connections are made from. Raises ValueError for a URL that is not http or https or has no
        path, and for control characters in the URL or a header.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path in ("", "/"):
            raise ValueError(
                f"{url!r} is not the URL of a pipeline: "
                "expected one like http://127.0.0.1:8000/predict/digits"
            )
        self._host = parts.hostname
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        fields = {
            "Host": parts.netloc.rpartition("@")[2],
            "Content-Type": "application/octet-stream",
            **(headers or {}),
        }
        if any(not text.isprintable() for text in (path, *fields, *fields.values())):
            raise ValueError("the URL or a header holds a line break or another control character")
        self._head = "".join(
            [
                f"{method} {path} HTTP/1.1\r\n",
                *(f"{name}: {value}\r\n" for name, value in fields.items()),
            ]
        ).encode()
        self._connection_class = HeaderConnection if read_headers else Connection
        self._patience = patience
        self._local = None if local_address is None else (local_address, 0)
        self._free: list[Connection] = []

    async def send(self, body: bytes) -> Answer:
        """Send a body and return the answer.

        Its status is `NO_ANSWER` if no connection could be made, if the answer was broken, or if
        none came within the client's patience.
        """
        try:
            connection = await self._connection()
        except OSError:
            return Answer(NO_ANSWER, b"")
        try:
            async with asyncio.timeout(self._patience):
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
        await asyncio.sleep(0)  # transports close in the next iteration of the loop

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.open:  # otherwise the server closed it while it was idle
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            self._connection_class,
            self._host,
            self._port,
            ssl=self._tls or None,
            local_addr=self._local,
        )
        return connection
