from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from penstock import create_app
from penstock.app.server.uvicorn_protocol import (
    HEAD_TIMEOUT_SECONDS,
    JOIN_BELOW_BYTES,
    MAX_HEAD_BYTES,
    HeadHolder,
    HttpProtocol,
)

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Transport:
    def __init__(self) -> None:
        self.writes: list[Any] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def writelines(self, data: Any) -> None:
        self.writes.append(list(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> str:
        return name


def holder() -> tuple[HeadHolder, Transport]:
    transport = Transport()
    return HeadHolder(transport, asyncio.get_running_loop()), transport  # type: ignore[arg-type]


async def test_head_and_body_are_one_write() -> None:
    held, transport = holder()
    for _ in range(2):
        held.write(HEAD)
        held.write(b"body")
    await asyncio.sleep(0)
    assert transport.writes == [HEAD + b"body"] * 2


async def test_a_head_whose_body_comes_later_does_not_wait_for_it() -> None:
    held, transport = holder()
    held.write(HEAD)
    assert transport.writes == []
    await asyncio.sleep(0)
    assert transport.writes == [HEAD]
    held.write(b"body")
    assert transport.writes == [HEAD, b"body"]


async def test_a_large_body_is_not_copied() -> None:
    held, transport = holder()
    body = bytes(JOIN_BELOW_BYTES)
    held.write(HEAD)
    held.write(body)
    assert transport.writes == [[HEAD, body]]
    assert transport.writes[0][1] is body


async def test_closing_loses_nothing() -> None:
    held, transport = holder()
    held.write(HEAD)
    held.close()
    await asyncio.sleep(0)
    assert transport.writes == [HEAD]
    assert held.is_closing()


async def test_a_body_that_looks_like_a_head_is_only_late() -> None:
    held, transport = holder()
    held.write(HEAD)
    held.write(HEAD)
    held.write(HEAD)
    await asyncio.sleep(0)
    assert b"".join(transport.writes) == HEAD * 3


async def test_all_else_is_the_transports() -> None:
    held, _ = holder()
    assert held.get_extra_info("peername") == "peername"


# heads and trailers that do not end

BEGIN = b"POST /predict/echo HTTP/1.1\r\nHost: x\r\n"
CHUNKED = BEGIN + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"


@pytest.fixture
def served(running: Any) -> Iterator[httpx.Client]:
    pipeline = {
        "pipeline": {"name": "echo", "inputs": {"data": {"kind": "bytes"}}},
        "node": {"backend": "Identity"},
    }
    with running(
        create_app(pipeline), http="penstock.app.server.uvicorn_protocol:HttpProtocol"
    ) as client:
        yield client


@contextlib.contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    address = client.base_url
    with socket.create_connection((address.host, address.port or 80), 20) as connection:
        yield connection


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(65536):
            found += more
    return found


def answer(connection: socket.socket) -> bytes:
    """One, whole."""
    found = b""
    while not (head := re.match(rb"(?s).*?content-length: (\d+)\r\n.*?\r\n\r\n", found)) or len(
        found
    ) < head.end() + int(head[1]):
        found += connection.recv(65536)
    return found


def flood(connection: socket.socket, piece: bytes, most: int = 64 << 20) -> int:
    """How much the server takes of it before it hangs up."""
    sent = 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while sent < most:
            connection.sendall(piece)
            sent += len(piece)
    return sent


@pytest.mark.parametrize(
    "piece", [b"x" * 65536, b"X-Y: z\r\n" * 4096], ids=["one header", "many headers"]
)
@pytest.mark.parametrize(
    ("start", "status"),
    [(BEGIN + b"A: ", b"431"), (CHUNKED + b"0\r\nA: ", b""), (CHUNKED + b"3;", b"")],
)
def test_what_is_no_body_is_bounded(
    served: httpx.Client, start: bytes, status: bytes, piece: bytes
) -> None:
    with connected(served) as connection:
        connection.sendall(start)
        assert flood(connection, piece) < 32 << 20  # what the sockets hold, and no more
        answer = all_of(connection)
        assert answer[9:12] in {status, b"400", b""}
    assert served.post("/predict/echo", content=b"abc").status_code == 200


def test_a_head_of_many_headers_is_read(served: httpx.Client) -> None:
    headers = {f"x-{number}": "v" * 1000 for number in range(200)}
    assert served.post("/predict/echo", content=b"abc", headers=headers).status_code == 200


def test_a_body_may_be_larger_than_any_head(served: httpx.Client) -> None:
    with connected(served) as connection:
        for _ in range(2):
            connection.sendall(
                BEGIN
                + b"Content-Length: %d\r\n\r\n" % (4 * MAX_HEAD_BYTES)
                + bytes(4 * MAX_HEAD_BYTES)
            )
            assert answer(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("begun", [b"", BEGIN])
def test_a_connection_without_a_whole_head_is_closed(
    served: httpx.Client, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr("penstock.app.server.uvicorn_protocol.HEAD_TIMEOUT_SECONDS", 0.05)
    with connected(served) as connection:
        for number in range(len(begun)):
            connection.sendall(begun[number : number + 1])  # it drips
        assert all_of(connection) == b""


class Timer:
    def __init__(self, ring: Callable[[], None]) -> None:
        self.ring = ring
        self.waits = True

    def cancel(self) -> None:
        self.waits = False


class Connection(Transport):
    def get_extra_info(self, name: str) -> Any:
        return None


async def test_the_timer_is_the_heads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins with the first byte (of a connection's first head: with the connection), no later byte renews it, and neither bodies nor
    the time between two requests are its business.
    """
    timers: list[Timer] = []
    loop = asyncio.get_running_loop()
    real = loop.call_later

    def call_later(delay: float, callback: Any, *args: Any, **more: Any) -> Any:
        if delay != HEAD_TIMEOUT_SECONDS:
            return real(delay, callback, *args, **more)
        timers.append(Timer(callback))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", call_later)
    answered = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
        )
        await send({"type": "http.response.body"})
        answered.set()

    config = Config(app, lifespan="off")
    config.load()
    protocol, transport = HttpProtocol(config, ServerState(), {}, loop), Connection()
    protocol.connection_made(transport)  # type: ignore[arg-type]
    assert [timer.waits for timer in timers] == [True]
    protocol.data_received(BEGIN[:10])
    protocol.data_received(BEGIN[10:])
    assert [timer.waits for timer in timers] == [True]
    protocol.data_received(b"Content-Length: 4\r\n\r\n")
    protocol.data_received(b"ab")
    assert [timer.waits for timer in timers] == [False]
    protocol.data_received(b"cd")
    await answered.wait()
    assert len(timers) == 1 and not transport.closed
    protocol.data_received(BEGIN)
    protocol.data_received(b"A: b\r\n")
    assert [timer.waits for timer in timers] == [False, True]
    timers[1].ring()
    assert transport.closed
    protocol.connection_lost(None)
    assert not timers[1].waits
