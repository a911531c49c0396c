"""The listening socket of gRPC. It needs no extra, and outlives the process that serves."""

from __future__ import annotations

import socket

from ..settings import Settings
from .errors import GrpcError

BACKLOG = 2048


def listen_for_grpc(settings: Settings) -> socket.socket:
    """Listen at `grpc_port` of the first address of `host`. At `::` that is all addresses of both
    families. Raises `GrpcError`.
    """
    port = settings.grpc_port or 0
    try:
        family, _, _, _, address = socket.getaddrinfo(
            plain_host(settings), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(
            (str(address[0]), port),
            family=family,
            backlog=BACKLOG,
            dualstack_ipv6=family == socket.AF_INET6 and socket.has_dualstack_ipv6(),
        )
    except OSError:
        raise GrpcError(
            f"grpc_port: can't listen on {place(settings, port)}: end the program that listens "
            "there, or choose another port with --grpc-port (0 takes a free one)"
        ) from None


def plain_host(settings: Settings) -> str:
    """Return `host` without the brackets of an IPv6 address."""
    return settings.host.removeprefix("[").removesuffix("]")


def place(settings: Settings, port: int) -> str:
    """Write a port of `host`, as a gRPC client takes it."""
    host = plain_host(settings)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
