"""The limits for clients, and the part of a server that connections use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

CONNECTION_WINDOW = 1 << 24
CALL_WINDOW = 1 << 20
"""Bytes that a client may send before it hears that they were taken."""

MOST_QUEUED_BYTES = 1 << 22
"""When so many bytes of whole messages wait for the handler of a call, more are not taken."""

HEAD_FACTOR = 4
"""Headers of more than `max_head` end their call, those of so many times as much the connection."""

MAX_UNREAD_BYTES = 1 << 20
"""The most bytes besides DATA that wait for a client that does not read."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Times are in seconds; None stands for no bound.

    `max_message`: bytes. `max_calls`: of all connections at a time; `max_streams`: of one.
    `ping_seconds`: when the server asks a silent client for a sign of life, while its calls wait.
    `min_ping_seconds`: how far apart the pings of a client have to be.
    """

    max_message: int
    max_head: int
    max_connections: int | None
    max_calls: int | None
    head_timeout: float
    idle_timeout: float
    send_timeout: float
    max_streams: int
    ping_seconds: float
    ping_timeout: float
    min_ping_seconds: float
    max_ping_strikes: int


class Owner(Protocol):
    """The part of a server that its connections use."""

    limits: Limits
    draining: bool

    def handler_of(self, method: str, metadata: Any) -> Any: ...
    def add(self, connection: Any) -> bool: ...
    def remove(self, connection: Any) -> None: ...
    def begin(self) -> bool: ...
    def end(self, task: object) -> None: ...


def peer_of(name: Any) -> str:
    """Return the name of an address as gRPC writes it."""
    if not isinstance(name, tuple):
        return "unix:"
    host, port = name[:2]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
