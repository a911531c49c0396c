"""`serve_models`: the model process, from its start to its end.

It is the server of one process, but for where connections and orders come from: from the links to
the fronts, and from the parent.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn

from penstock.backends.memory import budget
from penstock.pipelines.front_table import front_table
from penstock.pipelines.repository import Repository

from ...factory import make_app
from ...grpc.errors import GrpcError
from ...grpc.start import grpc_server
from ...server.connections import Connections
from ...server.logs import Log
from ...server.serve import Server, server_config
from ...settings import Settings
from ..control import Control
from ..count import front_count
from ..merge.model import Processes, merge_processes
from ..packets import Packets
from ..shares import models_memory
from .links import FrontLinks

logger = logging.getLogger("penstock.serve")

MAX_REASON = 1024
MAX_LEFT_OUT = 16
"""The most characters of a reason, and the most reasons, that the parent is told."""


def serve_models(
    repository: Repository, settings: Settings, control: socket.socket, log: Log
) -> int:
    """Serve as the parent at the other end of `control` says.

    Returns the exit code. Raises `ConfigError` if what the settings ask for is not installed.
    """
    for configuration in repository.all_configs:
        for warning in configuration.warnings:
            logger.warning("%s", warning, extra={"pipeline": configuration.name})
    # Fronts see what clients take: much of an answer may wait there while the end here waits.
    connections = Connections(settings.model_copy(update={"send_timeout": math.inf}))
    app = make_app(repository, settings=settings)
    links = FrontLinks(connections)
    links.table = partial(front_table, repository)
    repository.on_pressure = links.send_pressure
    processes = merge_processes(app, connections, log, links, fronts=front_count(settings))
    config = server_config(app, settings, connections)
    server = ModelServer(config, repository, settings, connections, links=links, control=control)
    server.on_processes = processes.take_processes
    server.make_grpc = partial(
        grpc_server,
        app.state.protocol,
        repository,
        settings,
        app.state.metrics.registry,
        connections.max_connections,
    )
    try:
        server.run([])
    finally:
        if app.state.tracing is not None:
            app.state.tracing.close()
    log.limit.tell()
    return server.exit_code


class ModelServer(Server):
    """The server of the model process. It listens nowhere."""

    def __init__(
        self,
        config: uvicorn.Config,
        repository: Repository,
        settings: Settings,
        connections: Connections,
        *,
        links: FrontLinks,
        control: socket.socket,
    ) -> None:
        super().__init__(config, repository, settings, connections)
        self.on_processes: Callable[[Processes], None] = lambda processes: None
        """Called with what the parent tells of all processes."""
        self._links = links
        self._end_of_control = control
        self._control: Packets
        self._addressed: asyncio.Future[None]
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the parent."""
        yield

    def _handle_signals(self) -> None:
        """Leave them to the parent, as above."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._limit_memory()
        self._addressed = self._loop.create_future()
        self._loading = asyncio.create_task(self._load())
        await uvicorn.Server.startup(self, [])
        self._connections.watch(self._loop)
        self._links.open(self.config, self.server_state)
        self._control = Packets(self._end_of_control, self._obey, self._parent_gone)
        self._control.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._links.close()
        self._control.flush()
        self._control.close()

    async def _load(self) -> None:
        await self._addressed
        await super()._load()
        if self._repository.state == "ready":
            self._links.loaded = True
            self._links.send_table()
            self._control.send((Control.READY, self._left_out()))

    def _fail(self, reason: str) -> None:
        self._control.send((Control.FAILED, reason[:MAX_REASON]))

    def _left_out(self) -> dict[str, str]:
        """Return the versions that can't be loaded, with the reasons."""
        failed = [
            (f"{name} version {version}" if len(states) > 1 else name, state[:MAX_REASON])
            for name, states in self._repository.version_states().items()
            for version, state in states.items()
            if state.startswith("failed")
        ]
        return dict(failed[:MAX_LEFT_OUT])

    def _repository_changed(self) -> None:
        super()._repository_changed()
        self._links.send_table()

    def _limit_memory(self) -> None:
        budget.limit = models_memory(self._settings, budget.used)

    # From the parent.

    def _obey(self, message: tuple[Any, ...], descriptors: Sequence[int]) -> None:
        kind = message[0]
        if kind == Control.ADDRESS:
            self._address = message[1]
            self._addressed.set_result(None)
        elif kind == Control.LINK:
            self._links.add(message[1], descriptors[0])
        elif kind == Control.GRPC:
            self._start_task(self._serve_grpc([socket.socket(fileno=one) for one in descriptors]))
        elif kind == Control.RETIRE:
            self._start_task(self._stop_grpc(message[1]))
        elif kind == Control.DRAIN:
            self._start_task(self._drain())
        elif kind == Control.END:
            self._start_task(self._end_within(message[1]))
        elif kind == Control.PROCESSES:
            self.on_processes(message[1])
        elif kind == Control.REPORT:
            self._report()

    def _parent_gone(self) -> None:
        logger.error("the parent process has ended: the server ends too")
        self._start_task(self._end_within(self._settings.drain_timeout))

    def _start_task(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_grpc(self, listeners: list[socket.socket]) -> None:
        try:
            grpc = self.make_grpc()
            if grpc is not None:
                await grpc.start(listeners[0])
                self._grpc = grpc
        except GrpcError as error:
            self._fail(str(error))
            self.exit_code = 1
            self._end()

    def _begin_drain(self, seconds: float) -> asyncio.Task[None]:
        if not self._stopping:
            self._stopping = True
            self._draining = asyncio.create_task(self._finish_requests(seconds))
        return self._draining

    async def _drain(self) -> None:
        await asyncio.wait([self._begin_drain(self._settings.drain_timeout)])
        self._control.send((Control.DRAINED,))

    async def _end_within(self, seconds: float) -> None:
        ends = self._loop.time() + seconds
        await asyncio.wait([self._begin_drain(seconds)], timeout=seconds)
        self.config.timeout_graceful_shutdown = max(1, math.ceil(ends - self._loop.time()))
        self._end()
