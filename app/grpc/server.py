"""The gRPC server of `penstock serve --grpc-port`."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from prometheus_client.registry import CollectorRegistry

from penstock.pipelines.repository import Repository

from ..http.tls import TlsError, tls_context
from ..settings import Settings
from ..v2.routes import ProtocolApp
from .errors import GrpcError
from .health import HealthService
from .http2.limits import Limits
from .http2.server import Http2Server
from .listener import listen_for_grpc, place
from .reflection import ReflectionService
from .service import InferenceService
from .uploads import Uploads

logger = logging.getLogger("penstock.serve")

MESSAGE_SLACK_BYTES = 1 << 26
"""Messages that exceed max_body by so much are still received, so that a stream goes on after one.
A larger one ends its call at once.
"""

KEEPALIVE_SECONDS = 60
KEEPALIVE_TIMEOUT_SECONDS = 20
"""While calls of a client wait, it is asked for a sign of life after so long, and has so long to
give it.
"""

MIN_PING_SECONDS = 10
MAX_PING_STRIKES = 2
"""A client that pings more often than that is disconnected, after so many times."""

MAX_STREAMS = 1024
"""The most calls of a connection at a time. More wait in the client."""


class Handler(Protocol):
    """A generic handler, as `grpc.aio.Server` takes it."""

    def service(self, details: Any) -> Any: ...


class Front(Handler, Protocol):
    """Stands before all services, and hands calls on to them or answers them itself."""

    def end_streams(self) -> None:
        """End the streams that are open. Their clients may keep them open for ever."""

    async def close(self) -> None:
        """Let go of everything, after the last call."""


MakeFront = Callable[[Sequence[Handler], Uploads], Front]


class GrpcServer:
    """Serves an app's protocol by gRPC. Make it in the event loop that serves."""

    def __init__(
        self,
        protocol: ProtocolApp,
        repository: Repository,
        settings: Settings,
        registry: CollectorRegistry,
        max_connections: int | None = None,
        *,
        front: MakeFront | None = None,
    ) -> None:
        """`registry` gets the metrics of calls while it serves. `max_connections`: None for any
        number. `front`: makes what stands before all services, if there is something.
        """
        self._registry = registry
        self._settings = settings
        self.port = 0

        def is_ready() -> bool:
            return not repository.why_not_ready(settings.ready_when)

        uploads = Uploads(settings)
        self._inference = InferenceService(protocol, settings, uploads)
        self._health = HealthService(is_ready, protocol.guard, uploads)
        reflection = ReflectionService(protocol.guard, settings, uploads)
        handlers: tuple[Handler, ...] = (
            self._inference.handler(),
            self._health.handler(),
            reflection.handler(),
        )
        self._front = None if front is None else front(handlers, uploads)
        if self._front is not None:
            handlers = (self._front,)
        self._server = Http2Server(handlers, _limits(settings, max_connections))

    async def start(self, listener: socket.socket | None = None) -> None:
        """Serve at `listener`; without one, listen at `grpc_port` of `host`. Set `port`.

        Raises `GrpcError` if that is not possible, and for settings that gRPC can't follow.
        """
        try:
            context = tls_context(self._settings, "h2")
        except TlsError as error:
            raise GrpcError(str(error)) from None
        if listener is None:
            listener = listen_for_grpc(self._settings)
        self.port = int(listener.getsockname()[1])
        await self._server.start(listener, context)
        self._inference.counts.port = self.port
        self._registry.register(self._inference.counts)
        logger.info("listening for gRPC on %s", self.address)

    @property
    def address(self) -> str:
        """Where the server listens, as a gRPC client takes it."""
        return place(self._settings, self.port)

    async def stop(self, grace: float) -> None:
        """Take no more calls, wait `grace` seconds for those in flight, and cancel the rest."""
        if self._front is not None:
            self._front.end_streams()
        self._inference.end_streams()
        self._health.end_watches()
        await self._server.stop(grace)
        if self._front is not None:
            await self._front.close()
        self._registry.unregister(self._inference.counts)


def _limits(settings: Settings, max_connections: int | None) -> Limits:
    return Limits(
        max_message=settings.max_body + MESSAGE_SLACK_BYTES,
        max_head=settings.max_head,
        max_connections=max_connections,
        max_calls=None if max_connections is None else max(max_connections, MAX_STREAMS),
        head_timeout=settings.head_timeout,
        idle_timeout=settings.idle_timeout,
        send_timeout=settings.send_timeout,
        max_streams=MAX_STREAMS,
        ping_seconds=KEEPALIVE_SECONDS,
        ping_timeout=KEEPALIVE_TIMEOUT_SECONDS,
        min_ping_seconds=MIN_PING_SECONDS,
        max_ping_strikes=MAX_PING_STRIKES,
    )
