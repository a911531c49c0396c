"""`AsgiRequest`: one request as an ASGI app sees it (scope, receive, send), and its answer's bytes.

Head and body of an answer leave in one write: two would be two system calls and two packets for an
answer of a few hundred bytes, at 4 to 5 µs each (docs/explanation/performance.md).
"""

from __future__ import annotations

import asyncio
import http
import logging
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope

from ..history.record import CLIENT_LEFT_STATUS
from ..http.access import Access
from ..http.request_id import request_id_of
from ..http.upload import UploadNotes

logger = logging.getLogger("uvicorn.error")

JOIN_BELOW_BYTES = 1 << 16
"""A smaller body is copied to its head, for one write. With a larger one the loop gets both pieces,
and gathers them.
"""

MAX_KNOWN_NAMES = 1024
"""So many names of headers are remembered, with their lower case."""

_PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
STATUS_LINES = {
    status: f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode()
    for status in range(100, 600)
}

_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CONTROLS = bytes({*range(32), 127} - {9, 10, 13})


class Wire(Protocol):
    """The part of a connection that a request needs."""

    writing_paused: bool

    def write(self, data: bytes) -> None: ...

    def write_pieces(self, *pieces: bytes | memoryview) -> None:
        """Write several pieces without a copy: a buffer must not change until it is sent."""

    async def writable(self) -> None:
        """Wait until the client has read enough of what was written, or has left."""

    def may_stay_open(self) -> bool:
        """Return whether the connection can stay open after an answer that begins now."""
        ...

    def body_taken(self) -> None: ...

    def answered(self, keep_alive: bool) -> None: ...

    def break_off(self) -> None:
        """Close the connection, because the answer can't be completed."""


class AsgiRequest:
    """One request. The connection feeds it the body, and gets its answer.

    `wire` is None once the answer is complete or the client has left: what the app sends after that
    must not reach the connection's next request.
    """

    __slots__ = (
        "_access",
        "_answered",
        "_chunked",
        "_default_head",
        "_head",
        "_left",
        "_loop",
        "_news",
        "_sent",
        "_waiters",
        "asks_for_body",
        "body",
        "complete",
        "failed",
        "http_1_0",
        "keep_alive",
        "more_body",
        "notes",
        "scope",
        "started",
        "task",
        "wire",
    )

    def __init__(
        self,
        wire: Wire,
        scope: Scope,
        loop: asyncio.AbstractEventLoop,
        *,
        default_head: bytes,
        keep_alive: bool,
        http_1_0: bool,
        access: Access | None,
    ) -> None:
        self.wire: Wire | None = wire
        self.scope = scope
        self.keep_alive = keep_alive
        self.http_1_0 = http_1_0
        self.body = b""  # received, and not yet taken by the app
        self.more_body = True
        self.asks_for_body = False  # the client waits for 100 Continue
        self.started = False  # the app has sent the head of its answer
        self.complete = False
        self.task: asyncio.Task[None] | None = None
        self.notes: UploadNotes | None = None  # of a body that has not come with the head
        self._loop = loop
        self._default_head = default_head
        self._access = access  # None: the access log is off, or has the request
        self._answered: tuple[int, str | None] = (CLIENT_LEFT_STATUS, None)  # status, request id
        self._sent = 0  # bytes of the answer's body
        self._news = False  # `receive` has something to return at once
        self.failed: Exception | None = None  # raised to the app instead of the rest of the body
        self._waiters: list[asyncio.Future[None]] = []
        self._head: bytes | None = None  # the head, until its body comes or the loop goes round
        self._chunked = False
        self._left: int | None = None  # bytes of the answer's body still to come, if it says

    @property
    def streamed(self) -> bool:
        """True if the app reads the body while it works on it."""
        return self.notes is not None and self.notes.streamed

    # From the connection.

    def feed(self, piece: bytes) -> None:
        """Add a piece of the body."""
        self.body = self.body + piece if self.body else piece
        self._notify()

    def feed_end(self) -> None:
        """Note that the body is complete."""
        self.more_body = False
        self._notify()

    def abandon(self, status: int = CLIENT_LEFT_STATUS) -> None:
        """Tell the app that the client has left, or was refused with another status."""
        if self._access is not None:
            if not self.started:
                self._answered = status, request_id_of(self.scope)
            self._log_access()
        self.wire = None
        self.body = b""
        self._notify()
        if self.notes is not None and self.notes.on_left is not None:
            self.notes.on_left()

    def fail_body(self, error: Exception) -> None:
        """Raise `error` to the app that reads the body, which does not go on."""
        self.failed = error
        self.body = b""
        self._notify()

    def _notify(self) -> None:
        self._news = True
        if self._waiters:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters.clear()

    async def run(self, app: ASGIApp, tasks: set[asyncio.Task[None]]) -> None:
        """Run the app. It is one of `tasks` meanwhile."""
        try:
            await app(self.scope, self.receive, self.send)
            if not self.complete and self.wire is not None:
                how = "completing" if self.started else "starting"
                logger.error(
                    "ASGI callable returned without %s response.", how, extra=self._log_fields()
                )
                await self._send_failure()
        except BaseException as error:
            logger.error("Exception in ASGI application", exc_info=error, extra=self._log_fields())
            await self._send_failure()
        finally:
            if self.task is not None:
                tasks.discard(self.task)
                self.task = None  # the task holds the request

    def _log_fields(self) -> dict[str, str]:
        return {"request_id": request_id_of(self.scope)}

    async def _send_failure(self) -> None:
        if self.complete or self.wire is None:
            return
        if self.started:
            self._flush()
            if self._access is not None:
                self._log_access()
            self.wire.break_off()
            return
        body = b"Internal Server Error"
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id_of(self.scope).encode("latin-1")),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def _log_access(self) -> None:
        access, self._access = self._access, None
        if access is not None:
            # A proxy's word for the client is put into the scope.
            access.log(self._answered[0], self._sent, self._answered[1], self.scope["client"])

    # The ASGI interface.

    async def receive(self) -> Message:
        """Return the next piece of the body, or its end. After that, wait until the client leaves
        or the answer is complete.
        """
        if self.asks_for_body and self.wire is not None:
            self.asks_for_body = False
            if self.more_body and not self.body:
                self.wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self._news:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter
        if self.failed is not None:
            raise self.failed
        wire = self.wire
        if wire is None:
            return {"type": "http.disconnect"}
        body = self.body
        self.body = b""
        self._news = False
        if self.more_body:
            wire.body_taken()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Message) -> None:
        wire = self.wire
        if wire is not None and wire.writing_paused:
            await wire.writable()
            wire = self.wire
        kind = message["type"]
        if self.complete:
            raise RuntimeError(
                f"Unexpected ASGI message '{kind}' sent, after response already completed."
            )
        if wire is None:
            return  # the client has left
        expected = "http.response.body" if self.started else "http.response.start"
        if kind != expected:
            raise RuntimeError(f"Expected ASGI message '{expected}', but got '{kind}'.")
        if self.started:
            self._send_body(wire, message.get("body", b""), message.get("more_body", False))
        else:
            self._start(wire, message["status"], message.get("headers", ()))

    def _start(self, wire: Wire, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.asks_for_body = False
        keep_alive = self.keep_alive and wire.may_stay_open()
        says_close = False
        lines = [STATUS_LINES[status], self._default_head]
        for given, value in headers:
            name = _KNOWN_NAMES.get(given) or _checked_name(given)
            if name == b"content-length":
                if not self._chunked:
                    self._left = int(value)
            elif name == b"connection":
                if b"close" in [option.strip() for option in value.lower().split(b",")]:
                    keep_alive = False
                    says_close = True
            elif name == b"transfer-encoding" and value.lower() == b"chunked":
                if self.http_1_0:
                    continue
                self._chunked = True
                self._left = None
            lines += (name, b": ", value, b"\r\n")
        ends = len(lines) // 4 + 1 + self._default_head.count(b"\n")  # four pieces a line
        if not keep_alive and not says_close:
            lines.append(b"connection: close\r\n")
            ends += 1
        without_body = status in (204, 304) or self.scope["method"] == "HEAD"
        if self._left is not None or self._chunked:
            pass
        elif without_body:
            self._left = 0
        elif not self.http_1_0:  # there the end of the connection ends the body
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
            ends += 1
        head = b"".join(lines)
        if (
            head.count(b"\n") != ends
            or head.count(b"\r") != ends
            or len(head.translate(None, _CONTROLS)) != len(head)
        ):
            raise RuntimeError("Invalid HTTP header value.")
        self.started = True
        self.keep_alive = keep_alive
        self._head = head + b"\r\n"
        if self._access is not None:
            request_id = next((value for name, value in headers if name == b"x-request-id"), b"")
            self._answered = status, request_id.decode("latin-1") or None
        # At most to the end of this iteration of the loop: a client of an answer whose body comes
        # later (a stream) must not wait for the head.
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        head = self._head
        if head is not None and self.wire is not None:
            self._head = None
            self.wire.write(head)

    def _send_body(self, wire: Wire, body: bytes, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            self._left = None
            body = b""
        elif self._chunked:
            self._sent += len(body)
            if body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if not more:
                body += b"0\r\n\r\n"
        elif self._left is not None:
            if len(body) > self._left:
                raise RuntimeError("Response content longer than Content-Length")
            self._left -= len(body)
            self._sent += len(body)
        if not more and self._left:
            raise RuntimeError("Response content shorter than Content-Length")
        head = self._head
        if head is None:
            if body:
                wire.write(body)
        elif len(body) < JOIN_BELOW_BYTES:
            self._head = None
            wire.write(head + body)
        else:
            self._head = None
            wire.write_pieces(head, body)
        if not more:
            self.complete = True
            self.wire = None
            if self._access is not None:
                self._log_access()
            self._notify()
            wire.answered(self.keep_alive)


_KNOWN_NAMES: dict[bytes, bytes] = {}


def _checked_name(name: bytes) -> bytes:
    """Return a header's name in lower case. Raises RuntimeError if it is not a name."""
    if not name or name.translate(None, _TOKEN):
        raise RuntimeError("Invalid HTTP header name.")
    lower = name.lower()
    if len(_KNOWN_NAMES) < MAX_KNOWN_NAMES:
        _KNOWN_NAMES[name] = lower
    return lower
