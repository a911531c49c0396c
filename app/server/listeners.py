"""The sockets of a server: begin to listen, and stop without losing a connection.

A client whose connection the kernel has accepted may have sent a request already. Closing the
listener would reset those that still wait there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..settings import Settings, is_address

SO_ATTACH_FILTER = 26  # of Linux; Python's socket does not name it

SOCKET_MODE = 0o666
"""The permissions of a Unix socket, as of uvicorn's: a proxy runs as another user."""

_NO_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)

_Address = tuple[socket.AddressFamily, Any]


inherited: list[socket.socket] = []
"""The listening sockets that this process has from the one that restarts it (reload.py)."""


class ListenError(Exception):
    """Raised when the server can't listen where its settings say."""


def listen(settings: Settings) -> list[socket.socket]:
    """Listen at `uds`, or at `port` of every address of `host`.

    Of several addresses those of a family that this machine lacks are left out. Raises
    `ListenError`, whose text says what to do.
    """
    return listen_often(settings, 1)[0]


def listen_often(settings: Settings, count: int) -> list[list[socket.socket]]:
    """Listen `count` times, as `listen`. The kernel spreads connections over the lists returned."""
    if settings.uds is not None:
        return [[listen_at_path(settings.uds, settings.backlog)]]
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    port = settings.port
    try:
        for family, address in _addresses(settings):
            place = (address[0], port, *address[2:])
            try:
                listeners += _listen_at(family, place, settings.backlog, count)
            except OSError as error:
                if error.errno not in _NO_FAMILY:
                    raise
                missing = error
            else:
                port = listeners[-1].getsockname()[1]
        if not listeners and missing is not None:
            raise missing
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise ListenError(_reason(error, settings, port)) from None
    return [listeners[number::count] for number in range(count)]


def _addresses(settings: Settings) -> list[_Address]:
    """Return the addresses to listen at, each with its family. Raises `ListenError`."""
    host = settings.host.removeprefix("[").removesuffix("]")
    try:
        # `::` stands for all addresses of both families, as with other servers.
        found = [
            entry
            for name in ([host, "0.0.0.0"] if host == "::" else [host])
            for entry in socket.getaddrinfo(
                name, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        ]
    except (OSError, UnicodeError):
        raise ListenError(
            f"host: {host!r} is no address of this machine and no name that it knows: give "
            "127.0.0.1 for this machine alone, or 0.0.0.0 for all its addresses"
        ) from None
    return list(dict.fromkeys((entry[0], entry[4]) for entry in found))


def _listen_at(
    family: socket.AddressFamily, address: Any, backlog: int, count: int
) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    try:
        if count > 1:  # a socket that shares its port could be bound although a server listens
            with _bind(family, address) as alone:
                address = alone.getsockname()
        for _ in range(count):
            listeners.append(_bind(family, address, shared=count > 1))
            address = listeners[-1].getsockname()
        for listener in listeners:
            listener.listen(backlog)
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _bind(family: socket.AddressFamily, address: Any, *, shared: bool = False) -> socket.socket:
    listener = socket.socket(family)
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # the clients of IPv4 have a listener of their own
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _reason(error: OSError, settings: Settings, port: int) -> str:
    place = f"[{settings.host}]" if ":" in settings.host else settings.host
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {place} is taken (address already in use): end the program that "
            "listens there, or choose another port with --port (0 takes a free one)"
        )
    if error.errno == errno.EACCES:
        return f"port {port} needs the rights of root: choose another with --port, such as 8000"
    if error.errno in _NO_FAMILY:
        kind = "an address" if is_address(settings.host) else "the name of an address"
        return (
            f"host: {settings.host} is not {kind} of this machine: give 127.0.0.1 for this machine "
            "alone, or 0.0.0.0 for all its addresses"
        )
    return f"can't listen on port {port} of {place}: {error.strerror}"


def listen_at_path(
    path: Path, backlog: int, setting: str = "uds", mode: int = SOCKET_MODE
) -> socket.socket:
    """Listen at a Unix socket. One that an ended server has left is replaced.

    `setting` names the path. Raises `ListenError`.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ListenError(f"{setting}: this system has no Unix sockets: give --host and --port")
    listener = socket.socket(socket.AF_UNIX)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionError):
                probe.connect(str(path))
                raise OSError(errno.EADDRINUSE, "")
            path.unlink()
        listener.bind(str(path))
        path.chmod(mode)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            what = "another server listens there" if path.is_socket() else "a file is there"
            raise ListenError(f"{setting}: {path} is taken: {what}; choose another path") from None
        raise ListenError(f"{setting}: can't listen at {path}: {error.strerror or error}") from None
    return listener


def stop_listening(servers: Iterable[asyncio.Server]) -> list[socket.socket]:
    """Close the listeners of `servers`. Return the connections that waited in them."""
    waiting: list[socket.socket] = []
    for server in servers:
        # Copies keep the sockets open until they are empty, whenever the loop closes its own.
        listeners = [socket.socket(fileno=os.dup(listener.fileno())) for listener in server.sockets]
        server.close()
        for listener in listeners:
            with listener:
                waiting += take_waiting(listener)
    return waiting


def take_waiting(listener: socket.socket) -> list[socket.socket]:
    """Let no more clients connect to a listener that doesn't block. Return those that wait."""
    waiting: list[socket.socket] = []
    _drop_new(listener)
    with contextlib.suppress(OSError):  # above all BlockingIOError: none is left
        while True:
            waiting.append(listener.accept()[0])
    return waiting


def _drop_new(listener: socket.socket) -> None:
    """Let the kernel drop what arrives at a listener. Clients that connect now try again, and are
    refused after it is closed.
    """
    if sys.platform != "linux":
        return
    import ctypes

    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0
    program = struct.pack("HL", 1, ctypes.addressof(drop_all))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
