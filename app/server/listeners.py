"""Stop listening without losing a connection.

A client whose connection the kernel has accepted may have sent a request already. Closing the
listener would reset those that still wait there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Iterable

SO_ATTACH_FILTER = 26  # of Linux; Python's socket does not name it


def stop_listening(servers: Iterable[asyncio.Server]) -> list[socket.socket]:
    """Close the listeners of `servers`. Return the connections that waited in them."""
    waiting: list[socket.socket] = []
    for server in servers:
        # Copies keep the sockets open until they are empty, whenever the loop closes its own.
        listeners = [socket.socket(fileno=os.dup(listener.fileno())) for listener in server.sockets]
        server.close()
        for listener in listeners:
            with listener:
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
