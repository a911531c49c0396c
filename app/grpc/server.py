"""The gRPC server of `penstock serve --grpc-port`."""

from __future__ import annotations

import logging
from typing import Any

from grpc import aio
from prometheus_client.registry import CollectorRegistry

from penstock.pipelines.repository import Repository

from ..settings import Settings
from ..v2.routes import ProtocolApp
from .errors import GrpcError
from .health import HealthService
from .reflection import ReflectionService
from .service import InferenceService
from .tls import credentials
from .uploads import Uploads

logger = logging.getLogger("penstock.serve")

MESSAGE_SLACK_BYTES = 1 << 26
"""Messages that exceed max_body by so much are still received, to be refused by an error that names
the setting. gRPC itself refuses larger ones, with a text of its own.
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


class NoDepartures(logging.Filter):
    """Keeps gRPC from logging, as an error, that it can't send to a client that has left."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], aio.InternalError))


logging.getLogger("grpc._cython.cygrpc").addFilter(NoDepartures())


class GrpcServer:
    """Serves an app's protocol by gRPC. Make it in the event loop that serves."""

    def __init__(
        self,
        protocol: ProtocolApp,
        repository: Repository,
        settings: Settings,
        registry: CollectorRegistry,
        max_connections: int | None = None,
    ) -> None:
        """`registry` gets the metrics of calls while it serves. `max_connections`: None for any
        number.
        """
        self._registry = registry
        calls = None if max_connections is None else max(max_connections, MAX_STREAMS)
        self._server = aio.server(
            options=_options(settings, max_connections), maximum_concurrent_rpcs=calls
        )
        self._settings = settings
        self.port = 0

        def is_ready() -> bool:
            return not repository.why_not_ready(settings.ready_when)

        uploads = Uploads(settings)
        self._inference = InferenceService(protocol, settings, uploads)
        self._health = HealthService(is_ready, protocol.guard, uploads)
        reflection = ReflectionService(protocol.guard, settings, uploads)
        self._server.add_generic_rpc_handlers(
            (self._inference.handler(), self._health.handler(), reflection.handler())
        )

    async def start(self) -> None:
        """Listen at `grpc_port` of `host`; `port` is the real one.

        Raises `GrpcError` if that is not possible, and for settings that gRPC can't follow.
        """
        settings = self._settings
        place = _place(settings.host, settings.grpc_port or 0)
        tls = credentials(settings)
        try:
            self.port = (
                self._server.add_insecure_port(place)
                if tls is None
                else self._server.add_secure_port(place, tls)
            )
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise GrpcError(
                f"grpc_port: can't listen on {place}: end the program that listens there, or "
                "choose another port with --grpc-port (0 takes a free one)"
            )
        await self._server.start()
        self._inference.counts.port = self.port
        self._registry.register(self._inference.counts)
        logger.info("listening for gRPC on %s", self.address)

    @property
    def address(self) -> str:
        """Where the server listens, as a gRPC client takes it."""
        return _place(self._settings.host, self.port)

    async def stop(self, grace: float) -> None:
        """Take no more calls, wait `grace` seconds for those in flight, and cancel the rest."""
        self._inference.end_streams()
        self._health.end_watches()
        await self._server.stop(grace)
        self._registry.unregister(self._inference.counts)


def _place(host: str, port: int) -> str:
    plain = host.removeprefix("[").removesuffix("]")
    return f"[{plain}]:{port}" if ":" in plain else f"{plain}:{port}"


def _options(settings: Settings, max_connections: int | None) -> list[tuple[str, Any]]:
    """Return gRPC's channel arguments. Its default receives 4 MiB, and shares a taken port."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", _at_most(settings.max_body + MESSAGE_SLACK_BYTES)),
        ("grpc.max_send_message_length", -1),
        ("grpc.per_message_decompression", 0),  # `Uploads` does it
        ("grpc.max_metadata_size", settings.max_head),
        ("grpc.absolute_max_metadata_size", settings.max_head),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.so_reuseport", 0),
        ("grpc.server_handshake_timeout_ms", _at_most(settings.head_timeout * 1000)),
        ("grpc.max_connection_idle_ms", _at_most(settings.idle_timeout * 1000)),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.http2.max_pings_without_data", 0),  # else gRPC stops asking after two
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),  # else a client may ping each 2 h
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_SECONDS * 1000),
        ("grpc.http2.max_ping_strikes", MAX_PING_STRIKES),
    ]
    if max_connections is not None:
        options.append(("grpc.max_allowed_incoming_connections", max_connections))
    return options


def _at_most(value: float) -> int:
    """Return a number that an int32, which gRPC's arguments are, can hold."""
    return min(round(value), 2**31 - 1)
