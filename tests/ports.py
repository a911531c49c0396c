"""Ports for servers that can't be asked which one the kernel gave them."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

PORTS = range(20_000, 30_000)
"""Below those that the kernel gives to connections and to servers on port 0 (from 32768 on Linux,
49152 elsewhere): none of another test can take the port before the server listens.
"""


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError(f"100 ports of {PORTS} are taken")
