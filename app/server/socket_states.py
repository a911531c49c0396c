"""The state of a connection, as the kernel knows it: whether its other side has ended, and the
bytes that it holds in both directions.
"""

from __future__ import annotations

import asyncio
import select
import socket
import sys

if sys.platform == "linux":
    import fcntl
    import termios

CLOSE_WAIT, TCP_CLOSE = 8, 7
"""States of TCP, in the first byte of TCP_INFO: the other side sends no more; it is gone."""


def tcp_state(transport: asyncio.BaseTransport) -> int:
    """Return the state of TCP, or that which a Unix socket would have: `CLOSE_WAIT`, `TCP_CLOSE` or
    another. For Linux.
    """
    connection = transport.get_extra_info("socket")
    try:
        return int(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])
    except OSError:  # not a TCP socket
        return unix_state(connection)


def unix_state(connection: socket.socket) -> int:
    """Return the state that TCP would have in place of a Unix socket; 0 while it is open."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)
    happened = poll.poll(0)
    if not happened:
        return 0
    return TCP_CLOSE if happened[0][1] & (select.POLLHUP | select.POLLERR) else CLOSE_WAIT


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
