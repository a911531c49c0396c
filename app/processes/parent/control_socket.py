"""The Unix socket where `penstock reload` finds the parent process, and both sides of it.

The client sends one line, `reload`. The server answers with lines of progress; the last one is
`done` or `failed`. Only root and the user of the server may ask.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from ...server.listeners import ListenError, listen_at_path
from ...settings import Settings

logger = logging.getLogger("penstock.serve")

MODE = 0o600
"""The permissions of a control socket that is a file."""

MAX_NAME_BYTES = 107
"""The longest name of a Unix socket."""

BACKLOG = 16
MAX_CLIENTS = 16
REQUEST_SECONDS = 5.0

REQUEST = b"reload\n"
DONE = "done"
FAILED = "failed"


class Progress:
    """The lines that one client of a reload is sent. None ends them."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[str | None] = asyncio.Queue()

    def tell(self, line: str) -> None:
        self.lines.put_nowait(line)

    def end(self, succeeded: bool) -> None:
        self.tell(DONE if succeeded else FAILED)
        self.lines.put_nowait(None)


class ControlServer:
    """Takes requests to reload, and passes each to `reload`."""

    def __init__(self, listener: socket.socket, reload: Callable[[Progress], None]) -> None:
        self._listener = listener
        self._reload = reload
        self._clients = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, sock=self._listener)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            with suppress(OSError, TimeoutError, ValueError):
                await self._answer(reader, writer)
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        user = _user_of(writer.get_extra_info("socket"))
        if user not in (0, os.geteuid()):
            logger.warning("user %d may not use the control socket", user)
            writer.write(f"only the server's user may do this\n{FAILED}\n".encode())
            return
        if self._clients > MAX_CLIENTS:
            writer.write(f"too many clients (at most {MAX_CLIENTS})\n{FAILED}\n".encode())
            return
        async with asyncio.timeout(REQUEST_SECONDS):
            request = await reader.readline()
        if request != REQUEST:
            writer.write(f"this server knows no other request than reload\n{FAILED}\n".encode())
            return
        progress = Progress()
        self._reload(progress)
        while (line := await progress.lines.get()) is not None:
            writer.write(f"{line}\n".encode())
            await writer.drain()


def listen_for_control(settings: Settings, port: int) -> socket.socket:
    """Listen at the control socket of a server that listens at `port`. Raises `ListenError`."""
    if settings.control_socket is not None:
        return listen_at_path(settings.control_socket, BACKLOG, "control_socket", MODE)
    name = abstract_name(settings, port)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(name)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(
            f"the control socket @{name[1:]} can't be made ({error.strerror}): set control_socket "
            "to a path of your own"
        ) from None
    return listener


def connect(settings: Settings) -> socket.socket:
    """Connect to the server that these settings name. Raises OSError."""
    client = socket.socket(socket.AF_UNIX)
    try:
        if settings.control_socket is not None:
            client.connect(str(settings.control_socket))
        else:
            client.connect(abstract_name(settings, settings.port))
            if os.geteuid() and _user_of(client) not in (0, os.geteuid()):
                raise PermissionError("another user's program listens there")
    except OSError:
        client.close()
        raise
    return client


def abstract_name(settings: Settings, port: int) -> str:
    """Return the name of a control socket without a file: that of the port or Unix socket where
    the server listens. It belongs to a network namespace, as ports do.
    """
    place = str(port) if settings.uds is None else str(settings.uds.absolute())
    return f"\0penstock/{place}"[:MAX_NAME_BYTES]


def _user_of(connection: socket.socket) -> int:
    """Return the user of the process at the other end."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[1])
