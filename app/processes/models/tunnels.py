"""Connections that fronts leave to the model process, through tunnels.

A front hands on each request that needs more than a body and an answer: pages, streams, WebSockets,
uploads of unknown length, what an operator does. An ordinary `Connection` serves them, on a socket
that carries the client's bytes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import uvicorn
from uvicorn.server import ServerState

from ...server.connection import IDLE, Connection
from ...server.connections import Connections
from .. import messages
from ..messages import Client

logger = logging.getLogger("penstock.processes")

SendToFront = Callable[[tuple[Any, ...]], None]


class Tunnels:
    """Makes the connections at the ends of tunnels."""

    def __init__(
        self, config: uvicorn.Config, state: ServerState, connections: Connections
    ) -> None:
        self._config = config
        self._state = state
        self._connections = connections
        self._opening: set[asyncio.Task[None]] = set()

    def add(
        self, send: SendToFront, message: tuple[Any, ...], descriptors: Sequence[int]
    ) -> TunnelConnection | None:
        """Serve the connection of a TUNNEL message, of which `descriptors` is owned from now on.

        `send` sends a message to its front. Returns None if there is no descriptor.
        """
        _, number, client, tls, last = message
        if not descriptors:  # the process has none left; the front sees the end of the tunnel
            return None
        end = socket.socket(fileno=descriptors[0])
        connection = TunnelConnection(
            self._connections,
            config=self._config,
            server_state=self._state,
            app_state={},
            send=send,
            number=number,
            client=client,
            tls=tls,
            last=last,
        )
        task = asyncio.get_running_loop().create_task(_connect(connection, end))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return connection


async def _connect(connection: TunnelConnection, end: socket.socket) -> None:
    try:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, end)
    except OSError as error:
        logger.error("a connection of a front could not be taken: %s", error)
        end.close()


class TunnelConnection(Connection):
    """A connection whose client is at the other end of a tunnel."""

    __slots__ = ("_last", "_number", "_peer", "_send", "_tunnel")

    def __init__(
        self,
        *arguments: Any,
        send: SendToFront,
        number: int,
        client: Client,
        tls: bool,
        last: bool,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        self._send = send
        self._number = number
        self._peer = client
        self._last = last
        self._tls = tls
        self._tunnel: TunnelTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tunnel = TunnelTransport(cast("asyncio.Transport", transport), self._peer)
        super().connection_made(self._tunnel)

    def data_received(self, data: bytes) -> None:
        self._tunnel.received += len(data)
        super().data_received(data)

    def close_next(self) -> None:
        """Close it after the next answer that begins."""
        self._last = True

    def may_stay_open(self) -> bool:
        return not self._last and super().may_stay_open()

    def _become_idle(self) -> None:
        super()._become_idle()
        if self.state is IDLE and not self._buffer:
            tunnel = self._tunnel
            self._send((messages.IDLE, self._number, tunnel.received, tunnel.sent))


class TunnelTransport(asyncio.Transport):
    """The transport of a tunnel. It counts the bytes, and tells the address of the client."""

    __slots__ = ("_client", "_transport", "received", "sent")

    def __init__(self, transport: asyncio.Transport, client: Client) -> None:
        super().__init__()
        self._transport = transport
        self._client = client
        self.received = 0
        self.sent = 0

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.sent += len(data)
        self._transport.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        pieces = list(list_of_data)
        self.sent += sum(map(len, pieces))
        self._transport.writelines(pieces)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return self._client
        return self._transport.get_extra_info(name, default)

    # All else is that of the transport.

    def write_eof(self) -> None:
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._transport.get_write_buffer_limits()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._transport.get_protocol()
