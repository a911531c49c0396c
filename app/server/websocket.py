"""`WebSocket`: a connection after its upgrade (RFC 6455), for an ASGI app.

wsproto frames the messages. At most one message has been read and not taken by the app; then
reading pauses. No extension is negotiated: a compressed message could be of any size.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import math
from collections.abc import Callable
from typing import Any, cast

from starlette.types import ASGIApp, Message, Scope
from uvicorn.server import ServerState
from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.utilities import LocalProtocolError

from penstock.backends.errors import InvalidRequest, PenstockError
from penstock.backends.memory import Reservation, budget

from ..http.access import Access
from ..http.request_id import request_id_of
from ..http.upload import UploadNotes
from .connections import Connections
from .head import RequestHead
from .socket_states import queued_bytes

logger = logging.getLogger("uvicorn.error")

UNCOUNTED_BYTES = 8192
"""A socket may hold so many received bytes, and as many unsent ones, without counting them."""

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
VERSION = b"13"


def asks_for_websocket(head: RequestHead) -> bool:
    """Return whether a request wants to go on as a WebSocket."""
    return (
        head.offers_upgrade
        and head.method == b"GET"
        and not (head.http_1_0 or head.length or head.coding)
        and b"websocket" in [name.strip() for name in _field(head, b"upgrade").lower().split(b",")]
    )


def accept_of(head: RequestHead) -> bytes:
    """Return the Sec-WebSocket-Accept of a handshake. Raises `InvalidRequest`."""
    if _field(head, b"sec-websocket-version") != VERSION:
        raise InvalidRequest("malformed: expected Sec-WebSocket-Version: 13")
    key = _field(head, b"sec-websocket-key")
    try:
        valid = len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        valid = False
    if not valid:
        raise InvalidRequest("malformed: Sec-WebSocket-Key is not the base64 of 16 bytes")
    return base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest())


def subprotocols_of(head: RequestHead) -> list[str]:
    offered = _field(head, b"sec-websocket-protocol").decode("latin-1")
    return [name.strip() for name in offered.split(",") if name.strip()]


def _field(head: RequestHead, wanted: bytes) -> bytes:
    return b",".join([value.strip() for name, value in head.fields if name == wanted])


class WebSocket(asyncio.Protocol):
    """One client's socket.

    The app has accepted it if `_open`. After the close frame of this side, `_closing`, whatever
    still comes is thrown away until the client's comes.
    """

    def __init__(
        self,
        shared: Connections,
        *,
        server_state: ServerState,
        app: ASGIApp,
        scope: Scope,
        accept: bytes,
        loop: asyncio.AbstractEventLoop,
        access: Access | None,
        tcp_left: Callable[[], bool],
    ) -> None:
        """`tcp_left` returns whether the client has ended its side, by the state of TCP."""
        self.deadline = self.send_deadline = math.inf
        self._shared = shared
        self._settings = shared.settings
        self._server_state = server_state
        self._app = app
        self._scope = scope
        self._accept = accept
        self._loop = loop
        self._access = access
        self._tcp_left = tcp_left
        self._notes = scope["penstock.upload"] = UploadNotes()
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None
        self._frames = Frames(ConnectionType.SERVER)
        self._memory = Reservation(budget)
        self._received = 0  # bytes of the last read, which `_frames` may still hold
        self._pieces = bytearray()  # of the message that has not come whole
        self._message: Message | None = {"type": "websocket.connect"}
        self._left: int | None = None  # the code by which the socket ended for the app
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._open = self._closing = self._lost = False
        self._reading = True
        self._pinged = False
        self._sent = 0
        self._unsent = self._queued = 0  # when `send_deadline` was set

    def __repr__(self) -> str:
        return f"<WebSocket {self._scope['client']}>"

    # The transport calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._shared.add(self, self._loop)
        self._server_state.connections.add(cast("Any", self))
        self._task = self._loop.create_task(self._run())
        self._server_state.tasks.add(self._task)
        self._set_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._shared.remove(self)
        self._server_state.connections.discard(cast("Any", self))
        self.deadline = self.send_deadline = math.inf
        self._pieces.clear()
        self._message = None
        self._memory.close()
        self._end(1006)
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        self._received = len(data)
        try:
            self._frames.receive_data(data)
        except LocalProtocolError:  # after the close frames of both sides
            return
        self._take()

    def eof_received(self) -> bool:
        return False  # the transport closes

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()
        self._watch_sending()
        self._count()

    def resume_writing(self) -> None:
        self.send_deadline = math.inf
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if not self._lost:
            self._count()

    # uvicorn's server calls this when it ends; ours does when a drain begins.

    def shutdown(self) -> None:
        """Close soon: after the request, which the drain ends."""
        self._shared.draining = self._shared.closing = True
        if self._closing:
            self.deadline = min(self.deadline, self._loop.time() + self._settings.drain_grace)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # Frames.

    def _take(self) -> None:
        """Take frames until a message is whole, or no more have come."""
        if self._message is not None and not self._closing:
            return
        for event in self._frames.events():
            if isinstance(event, Ping):
                self._write(self._frames.send(event.response()))
            elif isinstance(event, Pong):
                self._pinged = False
            elif isinstance(event, CloseConnection):
                self._close_received(event)
                return
            elif isinstance(event, (TextMessage, BytesMessage)) and not self._closing:
                self._add(event)
                if self._message is not None or self._closing:
                    break
        else:
            self._received = 0
        self._count()
        self._set_reading()

    def _add(self, event: TextMessage | BytesMessage) -> None:
        data = event.data
        self._pieces += data.encode() if isinstance(data, str) else data
        if len(self._pieces) > self._settings.max_message:
            self._fail(
                1009, f"the message has more than {self._settings.max_message} bytes (max_message)"
            )
        elif event.message_finished:
            content = bytes(self._pieces)
            self._pieces.clear()
            self._message = {"type": "websocket.receive"} | (
                {"text": content.decode()} if isinstance(event, TextMessage) else {"bytes": content}
            )
            self._wake()

    def _close_received(self, event: CloseConnection) -> None:
        if self._frames.state is ConnectionState.OPEN:  # not the client's: a frame is malformed
            self._shared.close("malformed", "socket of %s: %s", self._scope["client"], event.reason)
            self._fail(event.code, event.reason or "")
            return
        if self._frames.state is ConnectionState.REMOTE_CLOSING:
            self._write(self._frames.send(event.response()))
        self._end(event.code)
        self._transport.close()

    def _fail(self, code: int, reason: str) -> None:
        """Close the socket because of what the client sent."""
        self._close(code, reason)
        self._end(code)

    def _close(self, code: int, reason: str) -> None:
        """Send the close frame, and wait for the client's."""
        self._closing = True
        self._pieces.clear()
        self._message = None
        if self._frames.state is ConnectionState.OPEN:
            self._write(self._frames.send(CloseConnection(code, reason)))
        settings = self._settings
        timeout = self._shared.timeout(settings.discard_timeout)
        self.deadline = self._loop.time() + timeout
        self._take()  # what has come already

    def _end(self, code: int) -> None:
        """Tell the app that the socket has ended."""
        if self._left is None:
            self._left = code
            if self._notes.on_left is not None:
                self._notes.on_left()
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():  # uvloop raises
            self._transport.write(bytes(data))

    def _set_reading(self) -> None:
        reads = self._closing or self._message is None
        if self._lost or self._transport.is_closing():
            return
        now = self._loop.time()
        if not self._closing:
            # While it does not read, it looks after the client at each tick.
            self.deadline = now + self._settings.ping_interval if reads else now
        if reads is not self._reading:
            self._reading = reads
            self._pinged = False
            if reads:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _count(self) -> None:
        """Count what this socket holds in the memory budget; end it if that is full."""
        held = self._received + len(self._pieces)
        if self._message is not None:
            held += len(self._message.get("bytes") or self._message.get("text") or "")
        if held <= UNCOUNTED_BYTES:
            held = 0
        if self._writable is not None:
            held += self._transport.get_write_buffer_size()
        try:
            self._memory.resize(held, "a message")
        except PenstockError as error:
            self._shared.close("memory", "socket of %s closed: %s", self._scope["client"], error)
            if not self._closing:
                self._fail(1013, f"{error.code}: {error}"[:120])

    # The ASGI interface.

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        except BaseException as error:
            fields = {"request_id": request_id_of(self._scope)}
            logger.error("Exception in ASGI application", exc_info=error, extra=fields)
            self._refuse_or_close(1011)
        else:
            self._refuse_or_close(1000)
        finally:
            if self._task is not None:
                self._server_state.tasks.discard(self._task)
                self._task = None
            if self._access is not None:
                self._access.log(101 if self._open else 403, self._sent, request_id_of(self._scope))

    def _refuse_or_close(self, code: int) -> None:
        if self._lost or self._closing:
            return
        if self._open:
            self._close(code, "")
            return
        self._closing = True
        head = self._shared.default_head(self._server_state.default_headers)
        self._write(
            b"HTTP/1.1 403 Forbidden\r\n" + head + b"content-length: 0\r\nconnection: close\r\n\r\n"
        )
        self._transport.close()

    async def _receive(self) -> Message:
        while self._message is None and self._left is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        message, self._message = self._message, None
        if message is None:
            return {"type": "websocket.disconnect", "code": self._left}
        self._take()
        return message

    async def _send(self, message: Message) -> None:
        while self._writable is not None:
            await asyncio.shield(self._writable)
        if self._lost or self._closing:
            return  # the client has left
        kind = message["type"]
        if kind == "websocket.accept" and not self._open:
            self._open = True
            self._write(self._acceptance(message))
        elif kind == "websocket.close":
            if self._open:
                self._close(message.get("code", 1000), message.get("reason") or "")
            else:
                self._refuse_or_close(1000)
        elif kind == "websocket.send" and self._open:
            data: bytes | str | None = message.get("bytes")
            frame = self._frames.send(
                TextMessage(message["text"]) if data is None else BytesMessage(cast("bytes", data))
            )
            self._sent += len(frame)
            self._write(frame)
        else:
            raise RuntimeError(f"Unexpected ASGI message '{kind}'.")

    def _acceptance(self, message: Message) -> bytes:
        lines = [
            (b"upgrade", b"websocket"),
            (b"connection", b"Upgrade"),
            (b"sec-websocket-accept", self._accept),
            *message.get("headers", ()),
        ]
        if subprotocol := message.get("subprotocol"):
            lines.append((b"sec-websocket-protocol", subprotocol.encode("latin-1")))
        head = self._shared.default_head(self._server_state.default_headers)
        fields = b"".join([name + b": " + value + b"\r\n" for name, value in lines])
        return b"HTTP/1.1 101 Switching Protocols\r\n" + head + fields + b"\r\n"

    # Deadlines.

    def expire(self, now: float) -> None:
        """Act on a deadline that has passed. Called at every tick from then on."""
        if self.send_deadline <= now:
            self._check_sending()
        if self.deadline > now or self._lost:
            return
        if self._closing:
            self._transport.abort()
        elif not self._reading:
            if self._tcp_left():
                self._transport.abort()
        elif self._pinged:
            self._shared.close("late", "socket of %s ended by ping_interval", self._scope["client"])
            self._transport.abort()
        elif self._open:
            self._pinged = True
            self.deadline = now + self._settings.ping_interval
            self._write(self._frames.send(Ping()))

    def _watch_sending(self) -> None:
        self._unsent = self._transport.get_write_buffer_size()
        self._queued = queued_bytes(self._transport.get_extra_info("socket"))
        self.send_deadline = self._loop.time() + self._settings.send_timeout

    def _check_sending(self) -> None:
        unsent = self._transport.get_write_buffer_size()
        queued = queued_bytes(self._transport.get_extra_info("socket"))
        if unsent and unsent >= self._unsent and queued >= self._queued:
            self._shared.close("late", "socket of %s ended by send_timeout", self._scope["client"])
            self._transport.abort()
        elif unsent:
            self._watch_sending()
        else:
            self.send_deadline = math.inf
