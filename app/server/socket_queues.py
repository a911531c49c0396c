"""`queued_bytes` and `unread_bytes`: what the kernel holds of a connection, in both directions."""

from __future__ import annotations

import socket
import sys

if sys.platform == "linux":
    import fcntl
    import termios


def queued_bytes(connection: socket.socket) -> int:
    """Return how many sent bytes the other side has not acknowledged.

    Returns 0 where the system does not tell, and for a socket that is closed.
    """
    return 0 if sys.platform != "linux" else _bytes_of(connection, termios.TIOCOUTQ)


def unread_bytes(connection: socket.socket) -> int:
    """Return how many received bytes this side has not read. Returns 0 as `queued_bytes` does."""
    return 0 if sys.platform != "linux" else _bytes_of(connection, termios.FIONREAD)


def _bytes_of(connection: socket.socket, request: int) -> int:
    size = bytearray(4)
    try:
        fcntl.ioctl(connection.fileno(), request, size)
    except (OSError, ValueError):  # ValueError: its descriptor is -1
        return 0
    return int.from_bytes(size, sys.byteorder)
