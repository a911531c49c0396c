"""Servers of one app with and without the direct way (app/server/direct.py), to compare them."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from penstock.app.server.connections import Connections
from penstock.app.settings import Settings


class Door:
    """A server, and what its requests were answered by."""

    def __init__(self, port: int, connections: Connections) -> None:
        self.port = port
        self.connections = connections

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port))
        client.settimeout(60)
        return client

    def exchange(self, data: bytes, piece: int = 0) -> bytes:
        """Send `data` and return all that comes until the server closes.

        A client that ends its side could be taken for one that left, so the last request asks for
        the connection to be closed.
        """
        received = b""
        with self.connect() as client, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(0, len(data), piece or len(data)):
                client.sendall(data[start : start + (piece or len(data))])
            while more := client.recv(1 << 20):
                received += more
        return received


@contextlib.contextmanager
def open_door(running: Any, app: Any, settings: Settings, direct: bool) -> Iterator[Door]:
    """Serve `app`, with the direct way or by ASGI alone."""
    connections = Connections(settings)
    connections.direct = direct
    with running(app, http=connections, proxy_headers=False) as client:
        yield Door(client.base_url.port, connections)


def request(
    target: str = "/predict/one",
    body: bytes = b"data",
    *lines: str,
    method: str = "POST",
    length: int | None = None,
    last: bool = False,
) -> bytes:
    fields = [f"{method} {target} HTTP/1.1", "Host: x", *lines]
    if length != -1:
        fields.append(f"Content-Length: {len(body) if length is None else length}")
    if last:
        fields.append("Connection: close")
    return "\r\n".join([*fields, "", ""]).encode("latin-1") + body


def normal(answers: bytes) -> list[bytes]:
    """Return the answers in it, without what differs from one request to the next: times, and ids
    that were made. Nodes that run side by side end in any order.
    """
    normalised = []
    while answers:
        head, _, rest = answers.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: ([0-9]+)", head)
        size = (
            int(length[1]) if length else rest.find(b"0\r\n\r\n") + 5 if b"chunked" in head else 0
        )
        assert len(rest) >= size
        answer, answers = head + rest[:size], rest[size:]
        answer = re.sub(rb"date: [^\r]*", b"date: now", answer)
        answer = re.sub(rb"[0-9a-f]{12}-[0-9a-f]+", b"made", answer)
        answer = re.sub(rb"dur=[0-9.]+", b"dur=0", answer)
        answer = re.sub(rb'("(?:queue|run)_ms":)[0-9.e-]+', rb"\g<1>0", answer)
        answer = re.sub(rb"server-timing: [^\r]*", lambda line: bytes(sorted(line[0])), answer)
        if b"made" in answer or b"_ms" in answer:
            answer = re.sub(rb"content-length: [0-9]+", b"content-length: right", answer)
        if not answer.startswith(b"HTTP/1.1 100 "):  # sent unless the body is there already
            normalised.append(answer)
    return normalised


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until the server's thread has made `condition` true."""
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.001)
