"""`Relay`: what a client sends goes to two servers, and their answers have to be the same bytes.

So a whole suite of tests can be run against both ways of answering (app/server/direct.py).
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import httpx
import pytest

from .doors import Door

CATCH_UP_SECONDS = 60
"""How long the second server may take for an answer that the client has already."""


class _Pair:
    """A client's connection to both servers, and all that they have answered."""

    def __init__(self, client: socket.socket, doors: tuple[Door, Door]) -> None:
        self.client = client
        self.servers = [door.connect() for door in doors]
        self.answers = [b"", b""]
        self.sent = b""
        self.left = False  # before its servers had closed
        self._open = 2
        self._lock = threading.Lock()
        for server in self.servers:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._threads = [threading.Thread(target=self._send)]
        self._threads += [threading.Thread(target=self._receive, args=(which,)) for which in (0, 1)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.client.recv(1 << 16):
                self.sent += data
                for server in self.servers:
                    with contextlib.suppress(OSError):  # it has closed
                        server.sendall(data)
        self.left = self._open == 2
        self.same(CATCH_UP_SECONDS if not self.left else 0.5)
        for server in self.servers:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)

    def _receive(self, which: int) -> None:
        with contextlib.suppress(OSError):
            while data := self.servers[which].recv(1 << 16):
                self.answers[which] += data
                if which == 0:
                    self.client.sendall(data)
        with self._lock:
            self._open -= 1
        if which == 0:
            with contextlib.suppress(OSError):
                self.client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in (self.client, *self.servers):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self.client, *self.servers):
            end.close()

    def same(self, seconds: float) -> bool:
        """Return whether both servers have answered the same, after so many seconds at most."""
        ends = time.monotonic() + seconds
        while True:
            first, second = map(normal_stream, self.answers)
            if first == second or (self.left and _one_begins_as(first, second)):
                return True
            if time.monotonic() > ends:
                return False
            time.sleep(0.002)


class Relay:
    """Listens on `port`, and sends to two servers. The client gets the answers of the first."""

    def __init__(self, doors: tuple[Door, Door]) -> None:
        self._doors = doors
        self._pairs: list[_Pair] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._pairs.append(_Pair(client, self._doors))

    def check(self) -> int:
        """Assert that both have answered the same since the last check. Return the connections."""
        pairs = self._pairs.copy()
        for pair in pairs:
            if not pair.same(CATCH_UP_SECONDS):
                self._pairs.remove(pair)  # one test fails
                pair.close()
                first, second = map(normal_stream, pair.answers)
                pairs_of_bytes = zip(first, second, strict=False)
                same = sum(1 for _ in takewhile(lambda two: two[0] == two[1], pairs_of_bytes))
                shown = slice(max(same - 500, 0), same + 500)
                pytest.fail(
                    f"answered directly:\n{first[shown]!r}\nby ASGI:\n{second[shown]!r}\nto a "
                    f"connection that ended with\n{pair.sent[-1000:]!r}"
                )
        return len(pairs)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for pair in self._pairs:
            pair.close()


def _one_begins_as(first: bytes, second: bytes) -> bool:
    return first.startswith(second) or second.startswith(first)


_CHANGES: list[tuple[bytes, Any]] = [
    (rb"HTTP/1.1 100 Continue\r\n\r\n", b""),  # sent unless the body is there already
    (rb"date: [^\r]*", b"date: now"),
    (rb"[0-9a-f]{12}-[0-9a-f]+", b"made"),
    (rb"server-timing: [^\r]*", b"server-timing: any"),
    (rb'("(?:queue|run)_ms":)[0-9.e-]+', rb"\g<1>0"),
    (rb'("(?:ns|last_inference)":)[0-9]+', rb"\g<1>0"),
    (rb"content-length: [0-9]+", b"content-length: right"),  # of a body with an id that was made
    # Both servers are in one process, which has one set of log settings.
    (rb'\{"log_file":"",[^}]*\}', b"{log settings}"),
]


def normal_stream(answers: bytes) -> bytes:
    """Return answers without what differs from one request to the next: times, ids that were made,
    and what both servers change.
    """
    for pattern, replacement in _CHANGES:
        answers = re.sub(pattern, replacement, answers)
    return answers


@contextlib.contextmanager
def relayed(doors: tuple[Door, Door]) -> Iterator[tuple[Relay, httpx.Client]]:
    """Run a relay between two servers and an httpx client."""
    relay = Relay(doors)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{relay.port}", timeout=60) as client:
            yield relay, client
    finally:
        relay.close()
