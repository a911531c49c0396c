"""`Tunnel`: a client's connection that the model process serves, through this process.

The bytes go both ways as they are. To the model process it is a connection like any other, so all
that an app can do works as in one process: pages, streams, WebSockets, uploads of any size. A side
that does not read stops the other one from being read. When the model process waits for the next
request, the front's `Connection` has its client back.

Each side may end before the other one (half-close): that is passed on.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, cast

from penstock.backends.errors import PenstockError
from penstock.backends.memory import Reservation, budget

from ...server.calls import Lender
from ...server.connections import Connections
from ...server.socket_states import TCP_CLOSE, queued_bytes, tcp_state
from ..messages import LAST
from .link import FrontLink

BUFFER_BYTES = 1 << 16
"""With more that one side has not taken, the other side is not read."""


class Tunnel(asyncio.Protocol):
    """The client's side. It is one of the open connections of the front."""

    def __init__(
        self,
        connections: Connections,
        lender: Lender,
        data: bytes,
        refuse: Callable[[], None],
        tls: bool,
    ) -> None:
        """`data` has come from the client already. `refuse` answers its request if the model
        process goes. `tls`: the connection is encrypted.
        """
        self.deadline = self.send_deadline = math.inf
        self._shared = connections
        self._tls = tls
        self._lender = lender
        self._refuse_request = refuse
        self._first = data
        self._loop = asyncio.get_running_loop()
        self._memory = Reservation(budget)
        self._link: FrontLink
        self._number = 0
        self._sent = self._received = 0  # bytes to and from the model process
        self._idle: tuple[int, int] | None = None  # the same, as it says
        self._client_ended = lender.half_closed
        self._inner_ended = False  # the model process sends no more
        self._inner_full = False  # the model process does not take what is sent
        self._returns = False  # the client, to its connection, once all is sent
        self._taken = 0  # bytes that the client had taken when `send_deadline` was set
        self._transport: asyncio.Transport
        self._inner: asyncio.Transport | None = None
        self._opening: asyncio.Task[Any] | None = None

    def __repr__(self) -> str:
        return f"<Tunnel of {self._lender.client}, {self._sent} bytes in, {self._received} out>"

    def open(self, link: FrontLink) -> None:
        """Ask the model process to serve the connection.

        Raises OSError if no file descriptor is left. Then the connection has its client still.
        """
        shared = self._shared
        self._number, end = link.open_tunnel(self, self._lender.client, self._tls, shared.closing)
        self._link = link
        self._transport = transport = self._lender.lend(self)
        transport.pause_reading()
        transport.set_write_buffer_limits(high=BUFFER_BYTES)
        shared.add(self, self._loop)
        made = self._loop.create_unix_connection(lambda: _Inner(self), sock=end)
        self._opening = self._loop.create_task(made)
        self._opening.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[Any]) -> None:
        self._opening = None
        if not task.cancelled() and task.exception() is not None and self._number:
            self._refuse()

    # From the client's transport.

    def data_received(self, data: bytes) -> None:
        self._send(data)

    def eof_received(self) -> bool:
        """Return whether to keep the connection, for an answer."""
        self._client_ended = True
        if self._tls or self._inner_ended:  # TLS has no half-close
            return False
        if self._inner is not None and not self._inner.is_closing():
            self._inner.write_eof()
        self._look_after_client()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._client_ended = True
        self._close_inner()
        self._end()

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_reading()
        self._watch_sending()
        self._count()

    def resume_writing(self) -> None:
        self.send_deadline = math.inf
        if self._returns:
            self._return()
            return
        self._count()
        if self._inner is not None:
            self._inner.resume_reading()

    # From the transport of the model process's side.

    def inner_made(self, inner: asyncio.Transport) -> None:
        if not self._number:  # the client has left meanwhile
            inner.abort()
            return
        self._inner = inner
        inner.set_write_buffer_limits(high=BUFFER_BYTES)
        data, self._first = self._first, b""
        self._send(data)
        if self._client_ended:
            inner.write_eof()
        if not self._inner_full:
            self._transport.resume_reading()

    def inner_received(self, data: bytes) -> None:
        self._received += len(data)
        if not self._transport.is_closing():
            self._transport.write(data)
        if self._idle is not None:
            self._return_if_idle()

    def inner_ended(self) -> None:
        """Pass the end of the answers on."""
        self._inner_ended = True
        if self._returns:
            return
        if not self._received:
            self._refuse()
        elif self._tls or self._client_ended:
            self._close()
        elif not self._transport.is_closing():
            self._transport.write_eof()
            self._look_after_client()

    def inner_lost(self) -> None:
        if self._inner is None or self._returns:  # it was closed here, or its work is done
            return
        self._inner = None
        if self._received:
            self._close()
        else:
            self._refuse()

    def inner_paused(self) -> None:
        self._inner_full = True
        self._transport.pause_reading()
        self._look_after_client()
        self._count()

    def inner_resumed(self) -> None:
        self._inner_full = False
        if not (self._client_ended or self._inner_ended):
            self.deadline = math.inf
        if not self._transport.is_closing():
            self._count()
            self._transport.resume_reading()

    # From the link.

    def idle(self, received: int, sent: int) -> None:
        """Note that the model process waits for a request, after so many bytes."""
        self._idle = received, sent
        self._return_if_idle()

    # Its own.

    def _send(self, data: bytes) -> None:
        self._idle = None
        self._sent += len(data)
        if self._inner is not None and not self._inner.is_closing():  # uvloop raises
            self._inner.write(data)

    def _return_if_idle(self) -> None:
        """Give the client back to its connection, if the model process has taken all that came from
        it, and all that it answered is here.
        """
        if self._idle != (self._sent, self._received) or self._client_ended or self._inner_ended:
            return
        transport = self._transport
        if transport.is_closing():
            return
        self._returns = True
        transport.pause_reading()
        transport.set_write_buffer_limits(high=0)
        if not transport.get_write_buffer_size():
            self._return()

    def _return(self) -> None:
        self._close_inner()
        self._end()
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._lender.take_back(self._client_ended)

    def _refuse(self) -> None:
        """Answer in place of the model process, which has gone without an answer."""
        self._return()
        if not self._transport.is_closing():
            self._refuse_request()

    def _close(self) -> None:
        """Close the client's connection, once what was written is sent."""
        self._close_inner()
        if not self._transport.is_closing():
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._watch_sending()

    def _close_inner(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.abort()
        if self._number:
            self._link.close_tunnel(self._number)
            self._number = 0

    def _end(self) -> None:
        """Let go of what it holds: it carries no more."""
        self.deadline = self.send_deadline = math.inf
        self._shared.remove(self)
        self._memory.close()

    def _count(self) -> None:
        """Count what neither side has taken in the memory budget; end the connection if that is
        full.
        """
        held = self._transport.get_write_buffer_size()
        if self._inner is not None:
            held += self._inner.get_write_buffer_size()
        try:
            self._memory.resize(held if held > BUFFER_BYTES else 0, "a connection")
        except PenstockError as error:
            self._shared.close("memory", "answer to %s dropped: %s", self._who(), error)
            self._transport.abort()

    def _who(self) -> str:
        client = self._lender.client
        return "a client" if client is None else "{}:{}".format(*client)

    # As a connection of the front: deadlines, and the drain.

    def shutdown(self) -> None:
        """Let the model process close it after its next answer."""
        self._link.send(LAST, self._number)

    def abort(self) -> None:
        self._transport.abort()

    def _look_after_client(self) -> None:
        """Notice at once, or at one of the next ticks, that a side is gone that is not read."""
        if self._number:
            self.deadline = self._loop.time()
            self.expire(self.deadline)

    def expire(self, now: float) -> None:
        """Act on a deadline that has passed. Called at every tick from then on."""
        if self.send_deadline <= now:
            self._check_sending()
        if self.deadline > now:
            return
        if self._inner_ended and self._inner is not None and tcp_state(self._inner) == TCP_CLOSE:
            self._close()
        elif tcp_state(self._transport) == TCP_CLOSE:
            self._transport.abort()

    def _watch_sending(self) -> None:
        self._taken = self._taken_now()
        self.send_deadline = self._loop.time() + self._shared.settings.send_timeout

    def _check_sending(self) -> None:
        if not self._transport.get_write_buffer_size():
            self.send_deadline = math.inf
        elif self._taken_now() > self._taken:
            self._watch_sending()
        else:
            self._shared.close("late", "connection from %s ended by send_timeout", self._who())
            self._transport.abort()

    def _taken_now(self) -> int:
        """Return how many bytes of the answers the client's machine has acknowledged."""
        queued = queued_bytes(self._transport.get_extra_info("socket"))
        return self._received - self._transport.get_write_buffer_size() - queued


class _Inner(asyncio.Protocol):
    """The model process's side of a tunnel."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tunnel.inner_made(cast("asyncio.Transport", transport))

    def data_received(self, data: bytes) -> None:
        self._tunnel.inner_received(data)

    def eof_received(self) -> bool:
        self._tunnel.inner_ended()
        return True  # the client may still send

    def connection_lost(self, exc: Exception | None) -> None:
        self._tunnel.inner_lost()

    def pause_writing(self) -> None:
        self._tunnel.inner_paused()

    def resume_writing(self) -> None:
        self._tunnel.inner_resumed()
