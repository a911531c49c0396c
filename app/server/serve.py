"""`penstock serve`: uvicorn around the app, and the settings of a process that does nothing else.

The server listens at once and loads meanwhile; until then `/health/ready` answers 503. The first
SIGTERM or SIGINT makes it not ready. It goes on listening, so that clients and load balancers get
that answer, until the requests in flight have finished or `drain_timeout` has passed, and exits
with 0. A second signal ends it at once. SIGHUP loads pipelines again whose files changed, and
SIGUSR1 writes a report to the log.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp

from penstock.backends.errors import ConfigError, PenstockError
from penstock.backends.malloc import keep_memory
from penstock.backends.memory import set_limit
from penstock.pipelines.repository import Repository

from ..factory import make_app
from ..grpc.errors import GrpcError
from ..grpc.start import grpc_server
from ..http.tls import TlsError, tls_context
from ..settings import Settings, split, unknown_variables
from .banner import banner
from .connection import Connection
from .connections import Connections
from .listeners import ListenError, inherited, listen, stop_listening
from .logs import configure_logging
from .metrics import ConnectionCollector
from .place import base_url, places, warn_if_open
from .report import report_of
from .secrets import hide_secrets, warn_of_loose_files
from .standard_streams import open_standard_streams
from .switch_interval import SwitchInterval

if TYPE_CHECKING:  # one needs an extra, and few servers shadow another
    from ..grpc.server import GrpcServer
    from ..shadow.shadow import Shadow

logger = logging.getLogger("penstock.serve")

QUIET_SECONDS = 1.0
"""How long no request must have come before garbage is collected after a load or unload."""

TICKS_PER_CHOICE = 10
"""uvicorn's server ticks ten times a second; so often the switch interval is chosen again."""


def serve(
    repository: Repository,
    settings: Settings,
    shadow: Callable[[Repository, Settings], Shadow] | None = None,
) -> int:
    """Serve until a signal comes.

    `shadow`: makes the shadow of a running Triton, if there is one.

    Returns the exit code of the process: 0 after a drain, 1 if a pipeline could not be loaded.
    """
    open_standard_streams()
    log = configure_logging(
        settings.log_level, settings.log_format, max_bytes=settings.max_log_buffer
    )
    log.take_standard_error()
    hide_secrets()
    warn_of_loose_files(settings)
    for warning in unknown_variables(os.environ):
        logger.warning("%s", warning)
    try:
        tls = tls_context(settings, "http/1.1")
        listeners = list(inherited) or listen(settings)
    except (ListenError, TlsError) as error:
        logger.error("%s", error)
        return 1
    for configuration in repository.all_configs:
        for warning in configuration.warnings:
            logger.warning("%s", warning, extra={"pipeline": configuration.name})
    connections = Connections(settings)
    try:
        app = make_app(repository, settings=settings, shadow=shadow)
    except ConfigError as error:  # what the settings ask for is not installed
        logger.error("%s", error)
        return 1
    for collector in (log, ConnectionCollector(connections)):
        app.state.metrics.registry.register(collector)
    config = server_config(app, settings, connections)
    server = Server(config, repository, settings, connections, tls)
    server.make_grpc = partial(
        grpc_server,
        app.state.protocol,
        repository,
        settings,
        app.state.metrics.registry,
        connections.max_connections,
        front=None if shadow is None else app.state.shadow.grpc_front(),
    )
    server.shares_listeners = bool(inherited)
    server.shadow = app.state.shadow
    try:
        server.run(listeners)
    finally:
        if app.state.tracing is not None:
            app.state.tracing.close()
        if settings.uds is not None and not inherited:
            settings.uds.unlink(missing_ok=True)
    log.limit.tell()
    return server.exit_code


def server_config(app: ASGIApp, settings: Settings, connections: Connections) -> uvicorn.Config:
    """Configure uvicorn to serve an app on our connections, and to do nothing else."""
    http: Any = partial(Connection, connections)
    proxies = split(settings.trusted_proxies)
    return uvicorn.Config(
        app,
        loop="asyncio" if sys.platform == "win32" else "uvloop",
        http=http,
        ws="none",
        lifespan="off",  # `Server` starts and closes the repository, and nothing else does
        log_config=None,
        access_log=settings.access_log,
        # uvicorn believes 127.0.0.1 unless it is told, and X-Forwarded-For is easy to forge.
        proxy_headers=bool(proxies),
        forwarded_allow_ips="*" if "*" in proxies else proxies,
        server_header=False,
        root_path=settings.root_path,
        backlog=settings.backlog,
    )


class Server(uvicorn.Server):
    """uvicorn's server with another order of starting and ending. It owns the repository's life."""

    def __init__(
        self,
        config: uvicorn.Config,
        repository: Repository,
        settings: Settings,
        connections: Connections | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self.shares_listeners = False
        """Another process listens at the same sockets: what waits in them is left to it."""
        self.make_grpc: Callable[[], GrpcServer | None] = lambda: None
        self._grpc: GrpcServer | None = None
        self.shadow: Shadow | None = None
        self._connections = Connections(settings) if connections is None else connections
        self.exit_code = 0
        self._repository = repository
        self._settings = settings
        self._stopping = False
        self._ended = False
        self._started_at = time.monotonic()
        self._switch_interval = SwitchInterval()
        self._address: Any = ("", 0)  # of the first listener, as `getsockname` returns it
        self._loop: asyncio.AbstractEventLoop  # from `serve` on
        self._loading: asyncio.Task[None]  # from `startup` on
        self._draining: asyncio.Task[None]
        self._freezing: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        # Set before uvicorn captures signals: a signal may come while it imports the app.
        self._loop = asyncio.get_running_loop()
        self._handle_signals()
        await super().serve(sockets)

    def _handle_signals(self) -> None:
        """Handle SIGHUP and SIGUSR1, which would end the process. `nohup` ignores SIGHUP.

        The command line has held them back until now.
        """
        if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        self._loop.add_signal_handler(signal.SIGUSR1, self._report)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP, signal.SIGUSR1})

    def _reload(self) -> None:
        self._reloading = asyncio.create_task(self._reload_changed())

    async def _reload_changed(self) -> None:
        await asyncio.wait([self._loading])  # a file may have changed after it was read
        await self._repository.reload_changed()

    def _report(self) -> None:
        logger.info("%s", report_of(self._repository, self._connections))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # From the capture of signals to here uvicorn awaits nothing, so `_drain`, which needs this
        # task, has not run even if a signal has come.
        if sockets:
            self._address = sockets[0].getsockname()
        self._loading = asyncio.create_task(self._load())
        self.config.ssl = self._tls  # `config.load`, which has run, has set none
        await super().startup(sockets)
        if self.started:
            logger.info("listening on %s", places(self._address, self._settings))
            if self.shadow is not None:
                self.shadow.start()
            await self._start_grpc()
            warn_if_open(self._address, self._settings)
        if self._ended:
            self._loop.call_soon(self._end)

    async def _start_grpc(self) -> None:
        try:
            grpc = self.make_grpc()
            if grpc is not None:
                await grpc.start()
                self._grpc = grpc
        except GrpcError as error:
            logger.error("%s", error)
            self.exit_code = 1
            self._ended = True

    async def _stop_grpc(self, grace: float) -> None:
        grpc, self._grpc = self._grpc, None
        if grpc is not None:
            await grpc.stop(grace)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._stop_grpc(0)  # unless it has been drained
        if not self.shares_listeners:
            for waiting in stop_listening(self.servers):
                await self._loop.connect_accepted_socket(self._make_connection, waiting)
        await super().shutdown(sockets)

    def _make_connection(self) -> Connection:
        return Connection(
            self._connections,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

    def _end(self) -> None:
        """Make uvicorn shut down.

        Not during `startup`: uvicorn 0.30 to 0.40, at least, would return without closing its
        sockets.
        """
        self._ended = True
        self.should_exit = self.started

    async def _load(self) -> None:
        try:
            await self._repository.start()
        except PenstockError as error:
            if self._stopping:
                return
            self._fail(f"a pipeline can't be loaded: {error}")
        except Exception:
            logger.exception("a pipeline can't be loaded")
        else:
            tune_process()
            self._switch_interval.choose(self._repository.served)
            collect_and_freeze()
            self._limit_memory()
            self._repository.on_change = self._repository_changed
            names = ", ".join(self._repository.pipelines) or "no pipelines"
            logger.info("ready after %.1f s: %s", time.monotonic() - self._started_at, names)
            for line in banner(
                (pipeline.config for pipeline in self._repository.pipelines.values()),
                base_url(self._address, self._settings),
                self._settings,
            ):
                logger.info("%s", line)
            return
        self.exit_code = 1
        self._end()

    def _fail(self, reason: str) -> None:
        """Say why the server can't start."""
        logger.error("%s", reason)

    def _limit_memory(self) -> None:
        set_limit(self._settings.max_memory)

    def _repository_changed(self) -> None:
        tune_process()  # a new pipeline may have imported OpenCV
        self._switch_interval.choose(self._repository.served)
        self._limit_memory()  # models take memory
        if self._repository.state == "ready" and (self._freezing is None or self._freezing.done()):
            self._freezing = asyncio.create_task(self._freeze_when_quiet())

    async def _freeze_when_quiet(self) -> None:
        """Collect garbage once no request has come for a while.

        Between two requests of one client the server is idle too, and its next request would wait.
        """
        await self._repository.wait_idle()
        ended = -1
        while ended != (now := self._ended_requests()):
            ended = now
            await asyncio.sleep(QUIET_SECONDS)
            await self._repository.wait_idle()
        collect_and_freeze()

    def _ended_requests(self) -> int:
        """Count the requests that the loaded pipelines and their exposed nodes have ended."""
        return sum(
            pipeline.statistics.succeeded + sum(pipeline.statistics.failures.values())
            for versions in self._repository.versions.values()
            for pipeline in versions.values()
        )

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_PER_CHOICE == 0 and self._repository.state == "ready":
            self._switch_interval.choose(self._repository.served)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal: begin the drain, or end the process if that has begun already.

        uvicorn's handler would stop listening at once, and raise the signal again at the end
        instead of exiting with 0.
        """
        if self._stopping:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._stopping = True
        self._loop.call_soon_threadsafe(self._start_drain)

    def _start_drain(self) -> None:
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        await self._finish_requests(self._settings.drain_timeout)
        self._end()

    async def _finish_requests(self, seconds: float) -> None:
        """Refuse new requests, and give those in flight so many seconds to end."""
        ends = time.monotonic() + seconds
        in_flight = sum(pipeline.in_flight for pipeline in self._repository.served)
        logger.info(
            "draining: %d requests in flight, waiting at most %g s",
            in_flight,
            seconds,
        )
        self._connections.drain()
        if self.shadow is not None:
            await self.shadow.end()
        if not self._loading.done():
            self._loading.cancel()
            await asyncio.wait([self._loading])
        await self._repository.close(seconds)
        await self._stop_grpc(max(1.0, ends - time.monotonic()))
        # The time left to write to slow clients; at least a second, for the answers just made.
        self.config.timeout_graceful_shutdown = max(1, math.ceil(ends - time.monotonic()))


def collect_and_freeze() -> None:
    """Collect garbage, then hide everything that is loaded from the garbage collector.

    Loaded objects stay, and a full collection walks all of them: 17 ms with 62,000 objects, 95 ms
    once torch is imported. It holds the GIL all the while, on whatever thread it runs, so the loop
    stands still. Call it only while no request is in flight. Waiting for that costs little memory:
    backends are freed by their reference counts (executor.py), so only cycles of small objects
    wait, and those of users' backends.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def tune_process() -> None:
    """Tune the whole process, once pipelines have been loaded. Never called in a host's process."""
    # The objects of a request hold no cycles and die by their reference counts. Looking for cycles
    # every 700 allocations takes up to 5 % of the time.
    gc.set_threshold(20_000, 50, 100)
    keep_memory()
    cv2 = sys.modules.get("cv2")
    if cv2 is not None:
        # Executors decode images side by side; OpenCV's own threads would only compete with them.
        cv2.setNumThreads(1)
