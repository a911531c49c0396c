"""Clients without a key or a conscience against a server whose memory the operating system limits.

Each attack is one that once took hundreds of megabytes or the process.
"""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

if sys.platform != "linux":
    pytest.skip("needs prlimit and /proc", allow_module_level=True)

MAX_MEMORY = 64 << 20
"""What requests may hold together."""

ROOM = 160 << 20
"""The process may take so much more than at its start: `MAX_MEMORY` and what is not counted."""

ADDRESSES = 1 << 30
"""So much more address space it may have. glibc reserves 64 MiB of it for a thread, and orjson
eight times what it writes; both use little.
"""

OPERATORS = """
from penstock.backends.base import Backend

class Large(Backend):
    def forward(self, batch):
        for item in batch:
            item["result"] = "x" * (8 << 20)
"""

LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


class Limited:
    """A server whose address space is limited."""

    def __init__(self, process: Any, client: httpx.Client) -> None:
        self.process = process
        self.client = client
        self.address = ("127.0.0.1", client.base_url.port or 0)
        self.connections: list[socket.socket] = []
        self.rss_at_start = self.status("VmRSS")
        limit = self.status("VmSize") + ADDRESSES
        resource.prlimit(process.process.pid, resource.RLIMIT_AS, (limit, limit))

    def status(self, name: str) -> int:
        """Return a size of the process, in bytes."""
        text = Path(f"/proc/{self.process.process.pid}/status").read_text()
        match = re.search(rf"{name}:\s+(\d+) kB", text)
        assert match is not None, "the server has died"
        return int(match[1]) << 10

    def connect(self) -> socket.socket:
        self.connections.append(socket.create_connection(self.address, 60))
        return self.connections[-1]

    def send_until_full(self, connection: socket.socket, piece: bytes, most: int) -> int:
        """Send until the server stops reading or closes. Return how many bytes it took."""
        connection.settimeout(0.3)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < most:
                sent += connection.send(piece)
        return sent

    def grown(self) -> int:
        return self.status("VmRSS") - self.rss_at_start


@pytest.fixture
def limited(spawn: Any, tmp_path: Path) -> Iterator[Limited]:
    (tmp_path / "operators.py").write_text(OPERATORS)
    (tmp_path / "large.toml").write_text('[node]\nbackend = "Python[operators.py:Large]"\n')
    process = spawn(
        "serve",
        tmp_path,
        "--port",
        0,
        "--max-memory",
        MAX_MEMORY,
        PENSTOCK_API_KEY="key",
    )
    with process.listening() as client:
        process.wait_for("ready")
        server = Limited(process, client)
        yield server
        for connection in server.connections:
            connection.close()
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 200
        process.process.terminate()
        assert process.end() == 0
    log = "".join(process.lines)
    assert "MemoryError" not in log and "Traceback" not in log


def pipelines(server: Limited) -> None:
    """60 MiB of requests whose answers are never read."""
    connection = server.connect()
    assert server.send_until_full(connection, LIVE * 10_000, 60 << 20) < 32 << 20


def large_heads(server: Limited) -> None:
    for _ in range(40):
        server.send_until_full(server.connect(), LIVE[:-2] + b"A: " + b"b" * 496_000, 1)


def unfinished_heads(server: Limited) -> None:
    head = LIVE[:-2] + b"A: " + b"b" * 60_000
    for _ in range(800):
        server.send_until_full(server.connect(), head, len(head))


def many_fields(server: Limited) -> None:
    for _ in range(40):
        server.send_until_full(server.connect(), LIVE[:-2] + b"A: b\r\n" * 9000, 1)


def unread_pages(server: Limited) -> None:
    """Each asks again and again for a large page, and reads nothing."""
    for _ in range(40):
        server.send_until_full(
            server.connect(), b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n" * 5000, 200_000
        )


def uploads_without_a_key(server: Limited) -> None:
    head = b"POST /predict/large HTTP/1.1\r\nHost: x\r\nContent-Length: 62000000\r\n\r\n"
    for _ in range(17):
        connection = server.connect()
        connection.sendall(head)
        server.send_until_full(connection, bytes(1 << 20), 59 << 20)


def small_chunks(server: Limited) -> None:
    head = b"POST /predict/large HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\n"
    for _ in range(4):
        connection = server.connect()
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        server.send_until_full(connection, b"1\r\nx\r\n" * 10_000, 6 << 20)


def unread_answers(server: Limited) -> None:
    request = (
        b"POST /predict/large HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\n"
        b"Content-Length: 1\r\n\r\nx"
    )
    for _ in range(40):  # more than fit into the budget and the sockets' buffers
        connection = server.connect()
        connection.sendall(request)
        with contextlib.suppress(ConnectionResetError):
            connection.recv(1, socket.MSG_PEEK)  # it is answered


def resets(server: Limited) -> None:
    for _ in range(3000):
        with socket.create_connection(server.address, 60) as connection:
            connection.sendall(LIVE)
            connection.recv(1000)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert server.grown() < 24 << 20


ATTACKS: list[Callable[[Limited], None]] = [
    pipelines,
    large_heads,
    unfinished_heads,
    many_fields,
    unread_pages,
    uploads_without_a_key,
    small_chunks,
    unread_answers,
    resets,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.__name__ for attack in ATTACKS])
def test_the_memory_of_a_server_is_bounded(limited: Limited, attack: Any) -> None:
    attack(limited)
    assert limited.client.get("/health/live").status_code == 200
    grown = limited.status("VmHWM") - limited.rss_at_start
    print(f"{attack.__name__}: {grown >> 20} MiB more")
    assert grown < ROOM


def test_running_out_of_descriptors_is_told_and_passes(spawn: Any, digits: Path) -> None:
    process = spawn("serve", digits, "--port", 0, "--max-connections", 1000)
    with process.listening() as client:
        process.wait_for("ready")
        pid = process.process.pid
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 20, used + 20))
        address = ("127.0.0.1", client.base_url.port or 0)
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(socket.create_connection(address, 60))
            process.wait_for("out of file descriptors")
        assert _counted_lacks(client) > 0
        process.process.terminate()
        assert process.end() == 0


def _counted_lacks(client: httpx.Client) -> int:
    while True:  # the server sees the ends of the connections one by one
        with contextlib.suppress(httpx.TransportError):
            match = re.search(
                r'penstock_connections_closed_total{reason="descriptors"} (\d+)',
                client.get("/metrics").text,
            )
            return int(match[1]) if match else 0
