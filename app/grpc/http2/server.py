"""Listens, and holds the connections."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from .connection import Connection
from .limits import Limits

LOOK_SECONDS = 1.0
"""How often connections are looked at for what is due."""


class Details(NamedTuple):
    """A call as generic handlers of gRPC see it when they choose a method."""

    method: str
    invocation_metadata: Any


class Http2Server:
    """`handlers` are generic handlers, as `grpc.aio.Server` takes them, of stream-unary and
    stream-stream methods.
    """

    def __init__(self, handlers: Sequence[Any], limits: Limits) -> None:
        self.limits = limits
        self.draining = False
        self._handlers = handlers
        self._known: dict[str, Any] = {}
        self._calls = 0
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._no_calls = asyncio.Event()
        self._no_calls.set()

    async def start(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        """Serve at a socket that listens. It is closed with the server."""
        loop = asyncio.get_running_loop()
        timeout = None if context is None else self.limits.head_timeout
        self._server = await loop.create_server(
            lambda: Connection(self), sock=listener, ssl=context, ssl_handshake_timeout=timeout
        )
        self._timer = loop.call_later(LOOK_SECONDS, self._look, loop)

    async def stop(self, grace: float) -> None:
        """Take no more calls, wait `grace` seconds for those in flight, and cancel the rest."""
        self.draining = True
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._no_calls.wait(), grace)
        for connection in list(self._connections):
            connection.end()
        with suppress(TimeoutError):  # for their answers to leave
            await asyncio.wait_for(self._no_calls.wait(), LOOK_SECONDS)

    # from the connections

    def handler_of(self, method: str, metadata: Any) -> Any:
        """Return the handler of a method; None if there is none."""
        known = self._known.get(method)
        if known is None:
            details = Details(method, metadata)
            for handler in self._handlers:
                known = handler.service(details)
                if known is not None:
                    self._known[method] = known
                    break
        return known

    def add(self, connection: Connection) -> bool:
        """Take a connection, and return whether there is room for it."""
        most = self.limits.max_connections
        if self.draining or (most is not None and len(self._connections) >= most):
            return False
        self._connections.add(connection)
        return True

    def remove(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def begin(self) -> bool:
        """Count a call, and return whether there is room for it."""
        most = self.limits.max_calls
        if most is not None and self._calls >= most:
            return False
        self._calls += 1
        self._no_calls.clear()
        return True

    def end(self, task: object) -> None:
        self._calls -= 1
        if not self._calls:
            self._no_calls.set()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        for connection in list(self._connections):
            connection.look(now)
        self._timer = loop.call_later(LOOK_SECONDS, self._look, loop)
