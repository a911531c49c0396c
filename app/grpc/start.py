"""Make the gRPC server of an app, if it has a port for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.registry import CollectorRegistry

from penstock.pipelines.repository import Repository

from ..settings import Settings
from ..v2.routes import ProtocolApp
from .errors import GrpcError

if TYPE_CHECKING:  # it needs an extra
    from .server import GrpcServer, MakeFront


def grpc_server(
    protocol: ProtocolApp,
    repository: Repository,
    settings: Settings,
    registry: CollectorRegistry,
    max_connections: int | None = None,
    *,
    front: MakeFront | None = None,
) -> GrpcServer | None:
    """Return a server that has not started; None without a `grpc_port`.

    Call it in the event loop that serves. `registry` gets the metrics of calls. `max_connections`:
    None for any number. `front`: as `GrpcServer` takes it. Raises `GrpcError` if the extra is not
    installed.
    """
    if settings.grpc_port is None:
        return None
    try:
        import grpc  # noqa: F401  what the next line imports needs it only later

        from .server import GrpcServer
    except ImportError as error:
        raise GrpcError(
            f"grpc_port needs the extra grpc: pip install 'penstock-serve[grpc]' ({error})"
        ) from None
    return GrpcServer(protocol, repository, settings, registry, max_connections, front=front)
