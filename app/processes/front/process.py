"""A front process: `serve_front` runs it, as the parent process says over the control socket."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from email.utils import formatdate
from functools import partial
from typing import Any

import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from penstock.backends.memory import budget

from ...http.tls import TlsError, tls_context
from ...server.connection import Connection
from ...server.logs import Log
from ...server.serve import collect_and_freeze, tune_process
from ...settings import Settings
from ..control import Control, Role
from ..count import front_count
from ..merge.front import FrontReports
from ..packets import Packets
from ..shares import front_connections, front_memory
from .answers import SHUTTING_DOWN
from .connections import FrontConnections
from .link import FrontLink, Links
from .nodes import FrontNodes
from .routes import FrontRoutes
from .tunnels import FrontTunnels

logger = logging.getLogger("penstock.processes")


def serve_front(number: int, settings: Settings, control: socket.socket, log: Log) -> int:
    """Serve as front process `number` until the parent ends it.

    Returns the exit code of the process: 0, or 1 if it could not start.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(number, settings, control, log))


async def _serve(number: int, settings: Settings, control: socket.socket, log: Log) -> int:
    try:
        tls = tls_context(settings, "http/1.1")
    except TlsError as error:
        packets = Packets(control, lambda message, descriptors: None, lambda: None)
        packets.send((Control.FAILED, str(error)))
        packets.flush()
        packets.close()
        return 1
    fronts = front_count(settings)
    most = front_connections(settings, fronts)
    settings = settings.model_copy(update={"max_connections": most})
    budget.limit = front_memory(settings, fronts)
    tune_process()
    nodes = FrontNodes(number, fronts, settings)
    front = Front(settings, control, tls, nodes)
    front.on_query = FrontReports(str(Role(number)), front.connections, log, nodes.pipelines).answer
    collect_and_freeze()
    await front.run()
    await nodes.close(1)
    log.limit.tell()
    return 0


class Front:
    """One front: its connections, its link, and what the parent tells it."""

    def __init__(
        self,
        settings: Settings,
        control: socket.socket,
        tls: ssl.SSLContext | None,
        nodes: FrontNodes | None = None,
    ) -> None:
        self._settings = settings
        self._nodes = nodes
        self._loop = asyncio.get_running_loop()
        self._links = Links(settings.body_timeout)
        self.connections = FrontConnections(
            settings, FrontRoutes(settings, self._links, nodes), self._changed
        )
        self.on_query: Callable[[bytes], bytes] = lambda question: b""
        """Answers what the model process asks about this process."""
        self._state = ServerState()
        self.connections.tunnels = FrontTunnels(
            self.connections, self._links, self._default_head, tls is not None
        )
        self._make = partial(
            Connection,
            self.connections,
            config=_configuration(settings, tls),
            server_state=self._state,
            app_state={},
        )
        self._tls = tls
        self._control = Packets(control, self._told, self._orphaned)
        self._servers: list[asyncio.Server] = []
        self._arriving: set[asyncio.Task[Any]] = set()
        self._applying: set[asyncio.Task[None]] = set()
        self._taken = 0  # connections that came from the parent and have not ended
        self._accepts = True
        self._ended = asyncio.Event()
        self._left = asyncio.Event()  # no connection is open, and none will be

    async def run(self) -> None:
        """Serve until the parent ends it."""
        self._set_date()
        self.connections.watch(self._loop)
        self._control.send((Control.READY,))
        self._control.start()
        await self._ended.wait()
        self._stop_accepting()
        for task in (*self._arriving, *self._applying):
            task.cancel()
        self.connections.abort()
        self._changed()
        await self._left.wait()
        await asyncio.sleep(0)  # uvloop closes what has been aborted: else it can't close itself
        self._control.flush()
        self._control.close()
        if self._links.current is not None:
            self._links.current.close()

    def _default_head(self) -> bytes:
        return self.connections.default_head(self._state.default_headers)

    def _set_date(self) -> None:
        """Set the header Date of the answers of this process, once a second."""
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._loop.call_later(1, self._set_date)

    # From the parent.

    def _told(self, message: tuple[Any, ...], descriptors: Sequence[int]) -> None:
        kind = message[0]
        if kind == Control.CONNECTION:
            self._taken += 1
            self._control.send((Control.TAKEN, 1))
            if descriptors:
                self._take(socket.socket(fileno=descriptors[0]))
            else:  # the kernel has closed it: this process has no descriptor left
                self.connections.count_lack()
                self._changed()
        elif kind == Control.LINK:
            if descriptors:
                self._link(message[1], socket.socket(fileno=descriptors[0]))
            else:  # it would answer 503 for ever: the parent starts another one
                logger.error("the link to the model process was lost: no file descriptor is left")
                self._end(0.0)
        elif kind == Control.LISTEN:
            for descriptor in descriptors:
                self._spawn(self._listen(socket.socket(fileno=descriptor)))
        elif kind == Control.RETIRE:
            self._stop_accepting()
            self.connections.retire()
            self._loop.call_later(message[1], self._end, 1.0)
            self._changed()
        elif kind == Control.DRAIN:
            self._drain()
        elif kind == Control.END:
            self._end(message[1])
        elif kind == Control.REPORT:
            logger.info("%s", self._report())

    def _orphaned(self) -> None:
        """End, because the parent has died."""
        logger.error("the parent process has ended: this one ends too")
        self._end(self._settings.drain_timeout)

    def _drain(self) -> None:
        self._links.refusal = SHUTTING_DOWN
        self.connections.drain()

    def _end(self, seconds: float) -> None:
        self._stop_accepting()
        self._drain()
        self._loop.call_later(seconds, self._ended.set)
        self._changed()

    def _report(self) -> str:
        shared = self.connections
        ended = ", ".join(f"{count} by {why}" for why, count in shared.closed.items() if count)
        return (
            f"report: {len(shared.open)} of {shared.max_connections} connections are open; this "
            f"process ended {ended or 'none'}\n"
            f"  memory of requests: {budget.used} of {budget.limit} bytes\n"
            f"  link to the model process: {self._links.current or 'none'}"
        )

    # Connections.

    def _take(self, client: socket.socket) -> None:
        client.setblocking(False)
        self._spawn(self._loop.connect_accepted_socket(self._make, client, ssl=self._tls))

    async def _listen(self, listener: socket.socket) -> None:
        backlog = self._settings.backlog
        server = await self._loop.create_server(
            self._make, sock=listener, ssl=self._tls, backlog=backlog
        )
        if self._accepts:
            self._servers.append(server)
        else:
            server.close()

    def _stop_accepting(self) -> None:
        self._accepts = False
        for server in self._servers:
            server.close()
        self._servers.clear()

    def _spawn(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._arriving.add(task)
        task.add_done_callback(self._arrived)

    def _arrived(self, task: asyncio.Task[Any]) -> None:
        self._arriving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("a connection could not be made: %s", error)
        self._changed()

    def _changed(self) -> None:
        """Tell the parent how many connections have ended; end after the last one, if asked."""
        left = len(self.connections.open) + len(self._arriving)
        if self._taken > left:
            self._control.send((Control.CLOSED, self._taken - left))
            self._taken = left
        if not left and not self._accepts:
            self._ended.set()
            self._left.set()

    # The link.

    def _link(self, serial: int, end: socket.socket) -> None:
        def linked() -> None:
            self._links.current = link
            self._control.send((Control.LINKED, serial))

        def gone() -> None:
            if self._links.current is link:
                self._links.current = None
                if not self.connections.draining:
                    logger.warning(
                        "the model process has gone: requests are answered 503 until the next"
                    )

        link = FrontLink(end, linked, gone)
        link.on_query = self.on_query
        if self._nodes is not None:
            link.on_pressure = self._nodes.set_pressure
        link.on_table = partial(self._take_table, link, serial)

    def _take_table(self, link: FrontLink, serial: int, table: bytes, loaded: bool) -> None:
        """Run the front nodes of this table, unless it is that of an earlier model process."""
        if link is self._links.current:
            applying = None if self._nodes is None else self._nodes.apply(table)
            task = self._loop.create_task(self._apply(applying, serial if loaded else None))
            self._applying.add(task)
            task.add_done_callback(self._applying.discard)

    async def _apply(self, applying: Coroutine[Any, Any, None] | None, serial: int | None) -> None:
        try:
            if applying is not None:
                await applying
        finally:
            if serial is not None:
                self._control.send((Control.PREPARED, serial))


def _configuration(settings: Settings, tls: ssl.SSLContext | None) -> uvicorn.Config:
    """Return what a `Connection` wants to know of the server. No request reaches the app."""
    config = uvicorn.Config(
        _no_app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=settings.access_log,
        proxy_headers=False,
        server_header=False,
        root_path=settings.root_path,
    )
    config.load()
    config.ssl = tls
    return config


async def _no_app(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("requests go to the model process")
