from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.app.processes import messages

from ..fronts import SECONDS, Models, StubFront, head_of, models

GET = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(scope="module")
def served() -> Iterator[Models]:
    pipeline = {"pipeline": {"name": "same"}, "same": {"backend": "Identity"}}
    with models(pipeline, access_log=True) as process:
        yield process


@pytest.fixture
def front(served: Models) -> Iterator[StubFront]:
    with served.front() as front:
        yield front


class Tunnel:
    """The front's end of a tunnel, whose client is the test."""

    def __init__(self, front: StubFront, number: int = 1, *, last: bool = False) -> None:
        self.front = front
        self.number = number
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(SECONDS)
        self.sent = 0
        self.received = 0
        self._buffer = b""
        client = "192.0.2.1", 7
        front.send(messages.TUNNEL, number, client, False, last, descriptors=[theirs.fileno()])
        theirs.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)
        self.sent += len(data)

    def answer(self) -> tuple[bytes, bytes]:
        """Receive an answer with a Content-Length: its head and its body."""
        while b"\r\n\r\n" not in self._buffer:
            self._buffer += self._receive()
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(rest) < length:
            rest += self._receive()
        self._buffer = rest[length:]
        return head, rest[:length]

    def _receive(self) -> bytes:
        data = self.socket.recv(1 << 16)
        assert data, "the tunnel has ended"
        self.received += len(data)
        return data

    def idle(self) -> bool:
        """Return whether both sides agree that the tunnel is idle, once the model process says it
        is.
        """
        counts = self.front.receive()
        assert counts[:2] == (messages.IDLE, self.number)
        return counts[2:] == (self.sent, self.received)

    def ends(self) -> bool:
        """Return whether the model process has closed its end."""
        return self.socket.recv(1) == b""

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def tunnel(front: StubFront) -> Iterator[Tunnel]:
    tunnel = Tunnel(front)
    yield tunnel
    tunnel.close()


def test_a_tunnel_carries_any_request_and_tells_when_it_is_idle(tunnel: Tunnel) -> None:
    for _ in range(2):
        tunnel.send(GET)
        head, body = tunnel.answer()
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert json.loads(body) == {"live": True}
        assert tunnel.idle()
    tunnel.send(head_of("/predict/same", 5) + b'"abc"')  # what the front might have crossed
    assert tunnel.answer()[0].startswith(b"HTTP/1.1 ")
    assert tunnel.idle()


def test_a_tunnel_is_not_idle_while_more_is_here(tunnel: Tunnel) -> None:
    tunnel.send(GET + GET)
    tunnel.answer()
    tunnel.answer()
    assert tunnel.idle()  # told once


def test_the_last_answer_of_a_tunnel_ends_it(front: StubFront) -> None:
    tunnel = Tunnel(front, last=True)
    tunnel.send(GET)
    head, _ = tunnel.answer()
    assert b"connection: close" in head
    assert tunnel.ends()
    tunnel.close()


def test_the_client_is_that_of_the_front(tunnel: Tunnel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "penstock.access"):
        tunnel.send(GET)
        tunnel.answer()
        assert tunnel.idle()
    assert [record.message for record in caplog.records if record.name == "penstock.access"] == [
        '192.0.2.1:7 - "GET /health/live HTTP/1.1" 200'
    ]


def test_malformed_requests_get_their_answer(tunnel: Tunnel) -> None:
    tunnel.send(b"nonsense\r\n\r\n")
    head, _ = tunnel.answer()
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert tunnel.ends()


def test_a_front_that_goes_takes_its_tunnels_along(served: Models) -> None:
    with served.front(1) as other, served.front(2) as front:
        tunnel = Tunnel(front)
        tunnel.send(b"POST /predict/same HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        tunnel.close()
        front.socket.close()
        still = Tunnel(other)
        still.send(GET)
        still.answer()
        assert still.idle()
        still.close()


def test_a_tunnel_without_its_descriptor_does_no_harm(front: StubFront, tunnel: Tunnel) -> None:
    front.send(messages.TUNNEL, 9, None, False, False)
    tunnel.send(GET)
    tunnel.answer()
    assert tunnel.idle()


def test_a_websocket_goes_through_a_tunnel(tunnel: Tunnel) -> None:
    tunnel.send(
        b"GET /predict/same/stream HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n"
        b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert tunnel.socket.recv(1 << 16).startswith(b"HTTP/1.1 ")


def test_all_descriptors_are_closed_in_the_end() -> None:
    live_once()  # this may import, or make a thread
    before = open_descriptors()
    live_once()
    assert open_descriptors() == before


def live_once() -> None:
    """Start a model process, let it answer a request in a tunnel, and end it."""
    with models() as process, process.front() as front:
        tunnel = Tunnel(front)
        tunnel.send(GET)
        tunnel.answer()
        tunnel.close()


def open_descriptors() -> set[str]:
    """Return what is open in this process, apart from the list itself."""
    return {
        f"{path.name} {path.readlink()}"
        for path in Path("/proc/self/fd").iterdir()
        if path.is_symlink()
    }
