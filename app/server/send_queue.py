"""`queued_bytes`: how much the kernel still has to deliver to a client."""

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
    if sys.platform != "linux":
        return 0
    size = bytearray(4)
    try:
        fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, size)
    except (OSError, ValueError):  # ValueError: its descriptor is -1
        return 0
    return int.from_bytes(size, sys.byteorder)
