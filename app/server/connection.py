"""`Connection`: HTTP/1.1 and 1.0 on one socket, for `uvicorn.Config(http=partial(Connection, …))`.

uvicorn's server owns the sockets and signals; it makes a `Connection` for each client.

A connection has at most one parsed request in hand. What comes behind that request stays unparsed,
and reading pauses; so a client that sends and never reads can fill one read and the sockets'
buffers, no more. httptools parses the heads. It can't stop in the middle of what it is fed, so it
gets exactly one head at a time, and bodies are split off here.

Every state but `HANDLING` has a time-out, each a setting (docs/reference/settings.md):

    IDLE        no byte of the next request has come          idle_timeout, at first head_timeout
    HEAD        a part of its head has come                   head_timeout
    BODY        the app has it, more of its body will come    body_timeout
    HANDLING    the app has the whole request
    ANSWERING   and has begun its answer
    DISCARDING  answered; what still comes is thrown away     discard_timeout, max_discard
    CLOSING     the rest of the answer is being sent

In all of them, a client that reads nothing of what was written is closed after `send_timeout`.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import sys
from typing import Any, cast
from urllib.parse import unquote

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.server import ServerState

from penstock.backends.errors import InvalidRequest, NotReady, PenstockError
from penstock.backends.memory import budget

from ..http.access import Access
from ..http.access import logger as access_logger
from ..http.errors import status_of
from ..http.events import ENDLESS
from ..http.upload import UploadNotes
from .asgi import AsgiRequest
from .calls import Call, Routes
from .chunks import ChunkedBody, ChunksError
from .connections import MAX_REFUSED, TICK_SECONDS, Connections
from .direct_routes import without_root
from .head import NO_HEAD, HeadParser, RequestHead
from .refusals import HeadTooLarge, HeadTooLate, TooManyConnections, refusal
from .socket_states import CLOSE_WAIT, TCP_CLOSE, queued_bytes, tcp_state, unread_bytes
from .websocket import WebSocket, accept_of, asks_for_websocket, subprotocols_of

UNCOUNTED_BYTES = 8192
"""A connection may hold so many received bytes, and as many unsent ones, without counting them in
`max_memory`: small requests spare the time. docs/reference/settings.md states the sum.
"""

HELD_BODY_BYTES = 1 << 16
"""With more of a body received and not taken by the app, reading pauses."""

KEPT_BODY_BYTES = 1 << 18
"""If no more than this of an answered request's body is to come, it is thrown away and the
connection stays open. Go's server reads as much.
"""

CHUNKS_AT_ONCE = 4096
"""So many chunks are decoded before the loop may do something else: 3 ms."""

PROBE_SECONDS = 0.05


class State(enum.IntEnum):
    IDLE = 0
    HEAD = 1
    BODY = 2
    HANDLING = 3
    ANSWERING = 4
    DISCARDING = 5
    CLOSING = 6


# As names of this module: an attribute of the class costs a look-up each time.
IDLE, HEAD, BODY, HANDLING, ANSWERING, DISCARDING, CLOSING = State


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "__weakref__",
        "_access_log",
        "_address",
        "_app",
        "_app_state",
        "_asgi",
        "_buffer",
        "_chunks",
        "_client",
        "_config",
        "_counted",
        "_discarded",
        "_half_closed",
        "_head",
        "_head_bytes",
        "_loop",
        "_parser",
        "_queued",
        "_reading",
        "_remaining",
        "_request",
        "_root_path",
        "_routes",
        "_server",
        "_server_state",
        "_settings",
        "_shared",
        "_tls",
        "_transport",
        "_unsent",
        "_writable",
        "_written",
        "deadline",
        "send_deadline",
        "state",
        "writing_paused",
    )

    def __init__(
        self,
        shared: Connections,
        *,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """`shared` is ours; uvicorn's server gives the rest."""
        self.state = IDLE
        self.deadline = math.inf
        self.send_deadline = math.inf
        self.writing_paused = False
        self._shared = shared
        self._settings = shared.settings
        self._server_state = server_state
        self._app = cast("ASGIApp", config.loaded_app)
        self._app_state = app_state
        self._root_path = config.root_path
        self._tls = config.ssl is not None
        self._asgi = {"version": config.asgi_version, "spec_version": "2.3"}
        # None: every request goes to the app.
        self._routes = shared.direct_routes(config.loaded_app, config.root_path)
        self._access_log = config.access_log and access_logger.isEnabledFor(logging.INFO)
        self._loop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)  # until it is made
        self._client: tuple[str, int] | None = None
        self._address: str | None = None  # the client's
        self._server: tuple[str, int | None] | None = None
        self._buffer = b""  # received and not parsed: a part of a head, or the requests behind this
        self._request: AsgiRequest | Call | None = None
        self._reading = True
        self._half_closed = False  # the client has sent all that it will send
        self._counted = 0  # bytes counted in the memory budget
        self._discarded = 0
        self._written = 0  # bytes of the newest piece of an answer
        # When `send_deadline` was set: bytes that were not sent, and those of the kernel's queue.
        self._unsent = 0
        self._queued = 0
        self._writable: list[asyncio.Future[None]] = []
        self._head = NO_HEAD
        self._parser = HeadParser()
        self._head_bytes = 0
        # Of the body that is being read.
        self._remaining = 0
        self._chunks: ChunkedBody | None = None

    def __repr__(self) -> str:
        return f"<Connection {self._client} {self.state.name}>"

    # The transport calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)
        shared = self._shared
        self._server_state.connections.add(cast("Any", self))
        shared.add(self, self._loop)
        self._client = _address(transport.get_extra_info("peername"))
        self._address = None if self._client is None else self._client[0]
        self._server = _address(transport.get_extra_info("sockname"))
        transport.set_write_buffer_limits(high=UNCOUNTED_BYTES)
        self.deadline = self._loop.time() + self._settings.head_timeout
        if len(shared.open) > shared.max_connections:
            shared.closed["refused"] += 1
            self._turn_away(
                TooManyConnections(
                    f"the server has {shared.max_connections} connections already (max_connections)"
                )
            )
        elif shared.lacks_descriptors(transport.get_extra_info("socket").fileno()):
            self._turn_away(TooManyConnections("the server is out of file descriptors"))
        elif shared.draining:
            self.shutdown()

    def _turn_away(self, error: PenstockError) -> None:
        refused = self._shared.refused
        if len(refused) >= MAX_REFUSED:
            self._transport.abort()
        else:
            refused.add(self)
            self._refuse(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.state = CLOSING
        self._shared.remove(self)
        self._server_state.connections.discard(cast("Any", self))
        self.deadline = self.send_deadline = math.inf
        self._buffer = b""
        self._parser.drop()
        self._chunks = None
        request, self._request = self._request, None
        if request is not None:
            request.abandon()
        self.writing_paused = False
        self._wake_writers()
        if self._counted:
            budget.release(self._counted)
            self._counted = 0

    def data_received(self, data: bytes) -> None:
        state = self.state
        if state is IDLE or state is HEAD:
            self._read_head(self._buffer + data if self._buffer else data)
        elif state is BODY:
            self._read_body(self._buffer + data if self._buffer else data)
        elif state is DISCARDING:
            self._discard(data)
        elif state is not CLOSING:
            # Another request, before this one is answered.
            self._hold(self._buffer + data if self._buffer else data)

    def eof_received(self) -> bool:
        """Return whether to keep the connection, for an answer."""
        state = self.state
        if (
            state in (BODY, HANDLING, ANSWERING)
            and not self._tls  # has no half-close
            and self._may_be_half_closed()
        ):
            self._half_closed = True
            return True
        if self._request is not None:
            self._request.abandon()
            self._request = None
        self._close()
        return False

    def pause_writing(self) -> None:
        self.writing_paused = True
        self._watch_sending()
        try:
            self._count()
        except PenstockError as error:
            self._shared.close("memory", "answer to %s dropped: %s", self._who(), error)
            self._transport.abort()

    def resume_writing(self) -> None:
        self.writing_paused = False
        self.send_deadline = math.inf
        self._count()
        self._wake_writers()
        if self.state is IDLE and self._buffer:
            self._loop.call_soon(self._next)

    # uvicorn's server calls this when it ends; ours does when a drain begins.

    def shutdown(self) -> None:
        """Close soon: after the answer, or after `drain_grace` if no whole request has come."""
        self._shared.draining = self._shared.closing = True
        if self.state in (IDLE, HEAD, BODY, DISCARDING):
            self.deadline = min(self.deadline, self._loop.time() + self._settings.drain_grace)
        if self._request is not None:
            self._request.keep_alive = False
            self._drop_slow_watcher(self._request)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _drop_slow_watcher(self, request: AsgiRequest | Call) -> bool:
        """Close the connection of a client that watches and does not read: a drain does not wait
        for it. Return whether it was closed.
        """
        if (
            isinstance(request, AsgiRequest)
            and ENDLESS in request.scope
            and self._transport.get_write_buffer_size()
        ):
            self._transport.abort()
            return True
        return False

    # Reading a head.

    def _read_head(self, data: bytes) -> None:
        """Parse one head at the beginning of `data`, and begin its request."""
        shared = self._shared
        end = data.find(b"\r\n\r\n") + 4
        text = data[:end]
        head = shared.heads.get(text)
        if head is None:
            if data[0] in b"\r\n":  # RFC 9112, 2.2: empty lines may stand before a request
                self._buffer = b""
                if data := data.lstrip(b"\r\n"):
                    self._read_head(data)
                return
            settings = self._settings
            if end < 4 or end > settings.max_head:
                self._wait_for_head(data)
                return
            try:
                head = self._parser.parse(text, settings.max_fields)
            except PenstockError as error:
                self._refuse_malformed(error)
                return
            shared.heads.add(text, head)
        self._head = head
        if self._routes is not None and self._answer_directly(head, text, data, end):
            return
        if shared.tunnels is not None:
            shared.tunnels.take(self, head, data)
            return
        path = head.path.decode("ascii")
        if root := self._root_path:
            path = root + without_root(path, root)
        access = self._access() if self._access_log else None
        scope: Scope = {
            "type": "http",
            "asgi": self._asgi,
            "http_version": "1.0" if head.http_1_0 else "1.1",
            "server": self._server,
            "client": self._client,
            "scheme": "https" if self._tls else "http",
            "method": head.method.decode("ascii"),
            "root_path": root,
            "path": unquote(path) if "%" in path else path,
            "raw_path": path.encode("ascii") if root else head.path,
            "query_string": head.query,
            "headers": head.fields.copy(),  # apps may change theirs
            "state": self._app_state.copy(),
        }
        if head.offers_upgrade and asks_for_websocket(head):
            self._upgrade(head, scope, access, data[end:])
            return
        self._request = request = AsgiRequest(
            self,
            scope,
            self._loop,
            default_head=shared.default_head(self._server_state.default_headers),
            keep_alive=head.keep_alive and not head.http_1_0 and not shared.closing,
            http_1_0=head.http_1_0,
            access=access,
        )
        if access is not None:
            request.scope["penstock.access"] = access
        self._buffer = b""
        self._head_bytes = end
        tasks = self._server_state.tasks
        request.task = task = self._loop.create_task(request.run(self._app, tasks))
        tasks.add(task)
        length = head.length
        if head.coding or length > len(data) - end:
            self._parser.drop()
            self._begin_body(request, data[end:], length)
            return
        if head.offers_upgrade or (length and not head.keep_alive):
            self._parser.drop()
        if length:
            body = data[end : end + length]
            request.feed(body)
            self._parser.skip_body(body)
        request.feed_end()
        self.state = HANDLING
        self.deadline = math.inf
        if self._counted or end > UNCOUNTED_BYTES:
            self._count_or_fail()
        if len(data) > end + length:
            self._hold(data[end + length :])

    def _upgrade(self, head: RequestHead, scope: Scope, access: Access | None, data: bytes) -> None:
        """Hand the transport over to a `WebSocket`; this connection ends. `data` follows `head`."""
        try:
            accept = accept_of(head)
        except PenstockError as error:
            self._refuse_malformed(error)
            return
        del scope["method"]
        scope["type"] = "websocket"
        scope["scheme"] = "wss" if self._tls else "ws"
        scope["subprotocols"] = subprotocols_of(head)
        if access is not None:
            scope["penstock.access"] = access
        socket = WebSocket(
            self._shared,
            server_state=self._server_state,
            app=self._app,
            scope=scope,
            accept=accept,
            loop=self._loop,
            access=access,
            tcp_left=lambda: self._tcp_state() in (CLOSE_WAIT, TCP_CLOSE),
        )
        transport = self.lend(socket)
        if not self._reading:
            transport.resume_reading()
        socket.connection_made(transport)
        if data:
            socket.data_received(data)

    # Another protocol, a WebSocket or a tunnel, may take the transport.

    def lend(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Let `protocol` have the transport from now on, and return it."""
        transport = self._transport
        self.connection_lost(None)  # lets go of all that it holds
        transport.set_protocol(protocol)
        return transport

    def take_back(self, half_closed: bool) -> None:
        """Go on with the next request: whoever had the transport has answered the last one, and all
        of its answer is sent. `half_closed`: the client has sent all that it will send.
        """
        self._half_closed = half_closed
        transport = self._transport
        transport.set_protocol(self)
        transport.set_write_buffer_limits(high=UNCOUNTED_BYTES)
        self._server_state.connections.add(cast("Any", self))
        self._shared.add(self, self._loop)
        self._request = None
        self._reading = transport.is_reading()
        self._become_idle()
        self._set_reading()

    def reroute(self, request: bytes) -> None:
        """Send the request in hand, which has come whole, through a tunnel."""
        tunnels, head, data = self._shared.tunnels, self._head, request + self._buffer
        assert tunnels is not None
        self._request = None
        tunnels.take(self, head, data)

    @property
    def client(self) -> tuple[str, int] | None:
        """The client's address and port."""
        return self._client

    @property
    def half_closed(self) -> bool:
        """True once the client has sent all that it will send."""
        return self._half_closed

    def _answer_directly(self, head: RequestHead, text: bytes, data: bytes, end: int) -> bool:
        """Begin a small request of a hot route, whose head, `text`, is plain.

        Returns False for anything else, and if anything is unusual: the app answers that.
        """
        if self._counted or self.writing_paused or end > UNCOUNTED_BYTES:
            return False
        call = cast("Routes", self._routes).call_of(head, text, self._address)
        if call is None:
            return False
        shared = self._shared
        call.attach(
            self,
            shared.default_head(self._server_state.default_headers),
            head.keep_alive and not shared.closing,
            self._access() if self._access_log else None,
        )
        self._buffer = b""
        self._request = call
        self._head_bytes = end
        end_of_body = end + head.length
        if end_of_body > len(data):
            self._parser.drop()
            self.state = BODY
            timeout = shared.timeout(call.body_timeout)
            self.deadline = self._loop.time() + timeout
            self._remaining = head.length
            call.start()
            if len(data) > end:
                self.data_received(data[end:])
            return True
        body = data[end:end_of_body]
        if not head.keep_alive:
            self._parser.drop()
        elif self._parser.awaits_body:
            self._parser.skip_body(body)
        self.state = HANDLING
        self.deadline = math.inf
        if len(data) > end_of_body:
            self._hold(data[end_of_body:])
        call.start(body)
        return True

    def _access(self) -> Access:
        head = self._head
        version = "1.0" if head.http_1_0 else "1.1"
        return Access(self._client, head.method.decode("ascii"), head.path, head.query, version)

    def _wait_for_head(self, data: bytes) -> None:
        """Wait for the rest of a head, of which `data` has come."""
        settings = self._settings
        if len(data) > settings.max_head:
            self._refuse_malformed(
                HeadTooLarge(f"the head has more than {settings.max_head} bytes (max_head)")
            )
        elif not 0x40 < data[0] < 0x5B or data.count(b"\n") != data.count(b"\r\n"):
            self._refuse_malformed(InvalidRequest("malformed: this is no HTTP/1.1"))
        else:
            self._buffer = data
            if self.state is IDLE:
                self.state = HEAD
                timeout = self._shared.timeout(settings.head_timeout)
                self.deadline = self._loop.time() + timeout
            try:
                self._count()
            except PenstockError as error:
                self._refuse_for_memory(error)

    # Reading a body.

    def _begin_body(self, request: AsgiRequest, data: bytes, length: int) -> None:
        """Begin a body of which only `data` has come, or whose length is unknown."""
        settings = self._settings
        self.state = BODY
        timeout = self._shared.timeout(settings.body_timeout)
        # The app has the same time-out for a body that it reads, and its error comes first.
        self.deadline = self._loop.time() + timeout + TICK_SECONDS
        self._remaining = length
        if self._head.coding:
            self._chunks = ChunkedBody(settings.max_head, settings.max_fields)
        request.notes = request.scope["penstock.upload"] = UploadNotes()
        request.asks_for_body = self._head.expects and request.scope["http_version"] == "1.1"
        self._count_or_fail()
        if data:
            request.asks_for_body = False
            self._read_body(data)

    def _read_body(self, data: bytes) -> None:
        request = self._request
        if request is None or request.failed:
            return
        chunks = self._chunks
        if chunks is None:
            piece = data if len(data) <= self._remaining else data[: self._remaining]
            self._remaining -= len(piece)
            ended = not self._remaining
            taken = len(piece)
        else:
            try:
                piece, taken = chunks.feed(data, CHUNKS_AT_ONCE)
            except ChunksError as error:
                self._refuse_malformed(InvalidRequest(f"malformed: {error}"))
                return
            if isinstance(request, AsgiRequest):
                request.scope["penstock.chunks"] = chunks.chunks
            ended = chunks.done
        self._buffer = b""
        if piece:
            request.feed(piece)
        rest = data[taken:] if taken < len(data) else b""
        if ended:
            self._chunks = None
            self.state = ANSWERING if request.started else HANDLING
            self.deadline = math.inf
            if rest:
                self._hold(rest)
                request.feed_end()  # may answer at once, and go on with the rest
                return
            request.feed_end()
        elif rest:
            self._buffer = rest
            self._loop.call_soon(self._go_on)
        self._count_or_fail()
        self._set_reading()

    def _go_on(self) -> None:
        """Decode more chunks of what has been received."""
        if self.state is BODY and self._buffer:
            self._read_body(self._buffer)

    def _count_or_fail(self) -> None:
        try:
            self._count()
        except PenstockError as error:
            self._fail_body(error)

    def _fail_body(self, error: PenstockError) -> None:
        """Raise `error` to the app that reads the body, and read no more of it."""
        request = self._request
        self._buffer = b""
        self.deadline = math.inf
        if request is not None:
            request.keep_alive = False
            request.fail_body(error)  # a direct one answers at once
        self._set_reading()

    def _hold(self, data: bytes) -> None:
        """Keep what came behind the request in hand, and read no more."""
        self._buffer = data
        self._set_reading()
        self.deadline = self._loop.time()  # look after the client: reading would show its departure
        try:
            self._count()
        except PenstockError:
            self._buffer = b""
            self._shared.closed["memory"] += 1
            if self._request is not None:
                self._request.keep_alive = False

    def _set_reading(self) -> None:
        """Read, or pause, as the state asks for."""
        state = self.state
        request = self._request
        if state is BODY:
            reads = (
                request is not None
                and not request.failed
                and not self._buffer
                and len(request.body) <= HELD_BODY_BYTES
            )
        elif state is HANDLING or state is ANSWERING:
            reads = not self._buffer
        else:
            reads = state is not CLOSING
        if reads is not self._reading and not self._transport.is_closing():
            self._reading = reads
            if reads:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
                if state is BODY and request is not None and request.streamed:
                    self.deadline = self._loop.time()  # look after the client, as `_hold` does

    # The request calls these.

    def body_taken(self) -> None:
        if self._counted:
            self._count()
        if not self._reading:
            self._set_reading()

    def may_stay_open(self) -> bool:
        if self._shared.closing:
            return False
        if self.state is not BODY:
            return True
        request = self._request
        return (
            self._chunks is None
            and self._remaining <= KEPT_BODY_BYTES
            and request is not None
            # A client that waits for 100 Continue may send the body or not.
            and not (self._head.expects and self._remaining == self._head.length)
        )

    def write(self, data: bytes) -> None:
        if self.state is HANDLING:
            self.state = ANSWERING
        self._written = len(data)
        if not self._transport.is_closing():  # uvloop raises
            self._transport.write(data)

    def write_pieces(self, *pieces: bytes | memoryview) -> None:
        if self.state is HANDLING:
            self.state = ANSWERING
        self._written = sum(map(len, pieces))
        if not self._transport.is_closing():
            self._transport.writelines(pieces)

    async def writable(self) -> None:
        while self.writing_paused:
            waiter = self._loop.create_future()
            self._writable.append(waiter)
            await waiter

    def _wake_writers(self) -> None:
        for waiter in self._writable:
            if not waiter.done():
                waiter.set_result(None)
        self._writable.clear()

    def answered(self, keep_alive: bool) -> None:
        request, self._request = self._request, None
        head, self._head = self._head, NO_HEAD
        self._server_state.total_requests += 1
        state = self.state
        if state is CLOSING or self._transport.is_closing():
            return
        if keep_alive and state is ANSWERING:
            self._become_idle()
        elif not keep_alive:
            if self._shared.draining and request is not None and self._drop_slow_watcher(request):
                return
            if head.keep_alive or state is BODY or self._buffer:
                self._linger()
            else:
                self._close()  # the client has said that nothing will follow
        elif state is BODY:
            self.state = DISCARDING
            self.deadline = self._loop.time() + self._settings.discard_timeout
            self._buffer = b""
            self._set_reading()
        else:
            self._become_idle()

    def break_off(self) -> None:
        self._request = None
        self._close()

    # Between requests, and the end.

    def _become_idle(self) -> None:
        shared = self._shared
        self.state = IDLE
        timeout = shared.timeout(shared.idle_timeout)
        self.deadline = self._loop.time() + timeout
        if self._counted:
            self._count()
        if self._buffer:
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        """Begin the next request, of which bytes are here already."""
        if self.state is not IDLE or self.writing_paused or not self._buffer:
            return
        if self._tcp_state() == TCP_CLOSE:  # nobody would read the answer
            self._transport.abort()
            return
        self._read_head(self._buffer)
        self._set_reading()

    def _discard(self, data: bytes) -> None:
        if self._remaining < 0:
            self._discarded += len(data)
            if self._discarded > self._settings.max_discard:
                self._close()
            return
        taken = min(self._remaining, len(data))
        self._remaining -= taken
        if not self._remaining:
            self._buffer = data[taken:]
            self._become_idle()

    def _linger(self) -> None:
        """End the answer, then throw away what the client still sends, and close.

        Closing at once with unread bytes would reset the connection, and the client, or a proxy,
        would lose the answer.
        """
        self.state = DISCARDING
        self._remaining = -1
        self._discarded = 0
        self._buffer = b""
        self._chunks = None
        self._parser.drop()
        settings = self._settings
        timeout = self._shared.timeout(settings.discard_timeout)
        self.deadline = self._loop.time() + timeout
        if self._counted:
            self._count()
        if self._half_closed or self._transport.is_closing():
            self._close()
            return
        if not self._tls:  # where the end of what we send would be the end of the connection
            self._transport.write_eof()
        self._set_reading()

    def _close(self) -> None:
        """Close once what was written is sent."""
        if self.state is CLOSING:
            return
        self.state = CLOSING
        self.deadline = math.inf
        self._buffer = b""
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._watch_sending()

    def _refuse_malformed(self, error: PenstockError) -> None:
        self._shared.close("malformed", "request from %s refused: %s", self._who(), error)
        self._refuse(error)

    def _refuse_for_memory(self, error: PenstockError) -> None:
        self._shared.close("memory", "connection from %s closed: %s", self._who(), error)
        self._refuse(error)

    def _refuse(self, error: PenstockError) -> None:
        """Answer by `error`, if no answer has begun, and close."""
        request, self._request = self._request, None
        if request is not None:
            started = request.started
            request.abandon(status_of(error).http)
            if started:
                self._close()
                return
        head = self._shared.default_head(self._server_state.default_headers)
        self._transport.write(refusal(error, head))
        self._linger()

    def refuse(self, status: int, head: bytes, body: bytes, request_id: str | None) -> None:
        """Answer the request whose head was read last, and close. `head` lacks its last line."""
        if self._head.method == b"HEAD":
            body = b""
        if self._access_log:
            self._access().log(status, len(body), request_id)
        self._transport.write(b"%bconnection: close\r\n\r\n%b" % (head, body))
        self._linger()

    def _who(self) -> str:
        return "{}:{}".format(*self._client) if self._client else "a client"

    def _watch_sending(self) -> None:
        self._unsent = self._transport.get_write_buffer_size()
        self._queued = queued_bytes(self._transport.get_extra_info("socket"))
        self.send_deadline = self._loop.time() + self._settings.send_timeout

    def _count(self) -> None:
        """Count what this connection holds in the memory budget.

        Raises `MemoryFull`, `TooLarge`.
        """
        held = len(self._buffer)
        if self._request is not None:
            held += self._head_bytes + len(self._request.body)
        if held <= UNCOUNTED_BYTES:
            held = 0
        if self.writing_paused:  # the loop keeps a piece until its last byte is sent
            held += max(self._transport.get_write_buffer_size(), self._written)
        more = held - self._counted
        if more > 0:
            budget.reserve(more, "a connection")
        elif more:
            budget.release(-more)
        self._counted = held

    # Deadlines.

    def expire(self, now: float) -> None:
        """Act on a deadline that has passed. Called at every tick from then on."""
        if self.send_deadline <= now:
            self._check_sending(now)
        if self.deadline > now or self.state is CLOSING:
            return
        settings = self._settings
        draining = NotReady("the server is shutting down")
        if self.state is IDLE:
            self._close()
        elif self.state is HEAD:
            late = HeadTooLate(
                f"the head did not arrive within {settings.head_timeout:g} s (head_timeout)"
            )
            self._count_late("head_timeout")
            self._refuse(draining if self._shared.draining else late)
        elif self.state is BODY:
            request = self._request
            if request is not None and request.streamed:  # the app has a time-out for it
                if not self._reading:
                    self._check_uploader()
                return
            of_app = request is None or isinstance(request, AsgiRequest)
            timeout = settings.body_timeout if of_app else cast("Call", request).body_timeout
            late_body = InvalidRequest(
                f"the body did not arrive within {timeout:g} s (body_timeout)"
            )
            if self._shared.draining or of_app:
                self._count_late("body_timeout")
            self._fail_body(draining if self._shared.draining else late_body)
        elif self.state is DISCARDING:
            if self._transport.get_write_buffer_size():  # send_timeout decides
                self.deadline = now + settings.discard_timeout
                if self.send_deadline == math.inf:  # so little is left that nothing watches it
                    self._watch_sending()
            else:
                self._close()
        else:
            self._check_client()

    def _count_late(self, setting: str) -> None:
        self._shared.close("late", "connection from %s ended by %s", self._who(), setting)

    def _check_sending(self, now: float) -> None:
        unsent = self._transport.get_write_buffer_size()
        queued = queued_bytes(self._transport.get_extra_info("socket"))
        # The kernel takes nothing until a third of its queue, up to 4 MB, is free. A slow client
        # needs longer for that.
        if unsent and unsent >= self._unsent and queued >= self._queued:
            self._count_late("send_timeout")
            self._transport.abort()
        elif unsent:
            self._watch_sending()
        else:
            self.send_deadline = math.inf

    # A client that has sent its request may end its side and wait for the answer (half-close), or
    # be gone. Both look the same, a FIN, until something is sent: then a client that is gone resets
    # the connection. A second 100 Continue does no harm (RFC 9110, 15.2).

    def _may_be_half_closed(self) -> bool:
        """Return whether the client may still wait for an answer, and begin to find out."""
        request = self._request
        if self.state is not HANDLING or request is None or request.http_1_0:
            return False
        if self._tcp_state() != CLOSE_WAIT:
            return False
        request.keep_alive = False
        self._probe()
        return True

    def _probe(self) -> None:
        self._half_closed = True
        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.deadline = self._loop.time()
        self._loop.call_later(PROBE_SECONDS, self._check_client)

    def _check_client(self) -> None:
        """Notice that the client is gone although nothing is read."""
        request = self._request
        if request is None or self.state not in (HANDLING, ANSWERING):
            return
        state = self._tcp_state()
        if state == TCP_CLOSE:
            self._transport.abort()
        elif state == CLOSE_WAIT and not self._half_closed:
            if self.state is HANDLING and not request.http_1_0:
                self._probe()
            else:
                self._transport.abort()

    def _check_uploader(self) -> None:
        """Notice that a client is gone whose body is not being read."""
        state = self._tcp_state()
        request = self._request
        if state == TCP_CLOSE:
            self._transport.abort()
        elif state == CLOSE_WAIT and request is not None:
            # It will send nothing more. What the kernel has may be the rest of the body.
            if self._chunks is None:
                if unread_bytes(self._transport.get_extra_info("socket")) < self._remaining:
                    self._transport.abort()
            elif not (self._half_closed or request.started):
                self._probe()

    def _tcp_state(self) -> int:
        """Return the state of TCP, or that which it would have if this is a Unix socket; 0 where
        the system does not tell.
        """
        return 0 if sys.platform != "linux" else tcp_state(self._transport)


def _address(info: Any) -> tuple[str, int] | None:
    """Return the address in what a transport says of its socket or its peer."""
    return (str(info[0]), int(info[1])) if isinstance(info, tuple) and len(info) >= 2 else None
