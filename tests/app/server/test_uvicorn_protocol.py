"""uvicorn's protocol class with our changes, and the members of uvicorn's that we rely on."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from penstock import create_app
from penstock.app.server.serve import Server
from penstock.app.server.uvicorn_protocol import (
    HEAD_TIMEOUT_SECONDS,
    JOIN_BELOW_BYTES,
    MAX_HEAD_BYTES,
    HeadHolder,
    HttpProtocol,
)
from penstock.app.settings import Settings
from penstock.pipelines.repository import Repository

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Transport:
    """A transport that records what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes | list[bytes]] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def writelines(self, data: Iterable[bytes]) -> None:
        self.writes.append(list(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> Any:
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


async def test_a_head_does_not_wait_for_a_body_that_comes_later() -> None:
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
    written = [data for data in transport.writes if isinstance(data, bytes)]
    assert len(written) == len(transport.writes) and b"".join(written) == HEAD * 3


async def test_all_else_is_the_transports() -> None:
    held, _ = holder()
    assert held.get_extra_info("peername") == "peername"


# Heads and trailers that do not end.

BEGIN = b"POST /predict/echo HTTP/1.1\r\nHost: x\r\n"
CHUNKED = BEGIN + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"


@pytest.fixture
def served(running: Callable[..., AbstractContextManager[httpx.Client]]) -> Iterator[httpx.Client]:
    pipeline = {
        "pipeline": {"name": "echo", "inputs": {"data": {"kind": "bytes"}}},
        "node": {"backend": "Identity"},
    }
    with running(create_app(pipeline), http=HttpProtocol) as client:
        yield client


@contextlib.contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    address = client.base_url
    with socket.create_connection((address.host, address.port or 80), 20) as connection:
        yield connection


def receive_all(connection: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(65536):
            received += more
    return received


def receive_answer(connection: socket.socket) -> bytes:
    """Return one whole answer."""
    received = b""
    head = re.compile(rb"(?s).*?content-length: (\d+)\r\n.*?\r\n\r\n")
    while not (match := head.match(received)) or len(received) < match.end() + int(match[1]):
        received += connection.recv(65536)
    return received


def flood(connection: socket.socket, piece: bytes, most: int = 64 << 20) -> int:
    """Send `piece` again and again. Return how many bytes the server takes before it closes."""
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
def test_heads_trailers_and_extensions_are_bounded(
    served: httpx.Client, start: bytes, status: bytes, piece: bytes
) -> None:
    with connected(served) as connection:
        connection.sendall(start)
        assert flood(connection, piece) < 32 << 20  # no more than the sockets' buffers hold
        assert receive_all(connection)[9:12] in {status, b"400", b""}
    assert served.post("/predict/echo", content=b"abc").status_code == 200


def test_a_head_of_many_headers_is_read(served: httpx.Client) -> None:
    headers = {f"x-{number}": "v" * 1000 for number in range(200)}
    assert served.post("/predict/echo", content=b"abc", headers=headers).status_code == 200


def test_a_body_may_be_larger_than_any_head(served: httpx.Client) -> None:
    size = 4 * MAX_HEAD_BYTES
    with connected(served) as connection:
        for _ in range(2):
            connection.sendall(BEGIN + b"Content-Length: %d\r\n\r\n" % size + bytes(size))
            assert receive_answer(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("begun", [b"", BEGIN])
def test_a_connection_without_a_whole_head_is_closed(
    served: httpx.Client, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr("penstock.app.server.uvicorn_protocol.HEAD_TIMEOUT_SECONDS", 0.05)
    with connected(served) as connection:
        for number in range(len(begun)):
            connection.sendall(begun[number : number + 1])  # byte by byte
        assert receive_all(connection) == b""


class Timer:
    def __init__(self, ring: Callable[[], None]) -> None:
        self.ring = ring
        self.waits = True

    def cancel(self) -> None:
        self.waits = False


class Connection(Transport):
    def get_extra_info(self, name: str) -> Any:
        return None


async def test_the_timer_covers_heads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts with the first byte of a head, or with the connection, and no later byte renews it.

    It covers neither bodies nor the time between two requests.
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

    def waiting() -> list[bool]:
        return [timer.waits for timer in timers]

    config = Config(app, lifespan="off")
    config.load()
    protocol, transport = HttpProtocol(config, ServerState(), {}, loop), Connection()
    protocol.connection_made(transport)  # type: ignore[arg-type]
    assert waiting() == [True]
    protocol.data_received(BEGIN[:10])
    protocol.data_received(BEGIN[10:])
    assert waiting() == [True]
    protocol.data_received(b"Content-Length: 4\r\n\r\n")
    protocol.data_received(b"ab")
    assert waiting() == [False]
    protocol.data_received(b"cd")
    await answered.wait()
    assert (len(timers), transport.closed) == (1, False)
    protocol.data_received(BEGIN)
    protocol.data_received(b"A: b\r\n")
    assert waiting() == [False, True]
    timers[1].ring()
    assert transport.closed
    protocol.connection_lost(None)
    assert not timers[1].waits


# What we rely on in uvicorn.

OVERRIDDEN: dict[type, tuple[type, dict[str, list[str]]]] = {
    HttpProtocol: (
        HttpToolsProtocol,
        {
            "connection_made": ["self", "transport"],
            "connection_lost": ["self", "exc"],
            "data_received": ["self", "data"],
            "on_message_begin": ["self"],
            "on_headers_complete": ["self"],
            "on_body": ["self", "body"],
            "on_message_complete": ["self"],
        },
    ),
    Server: (
        uvicorn.Server,
        {
            "serve": ["self", "sockets"],
            "startup": ["self", "sockets"],
            "handle_exit": ["self", "sig", "frame"],
        },
    ),
}
CALLED = {
    "_unset_keepalive_if_required": ["self"],
    "timeout_keep_alive_handler": ["self"],
    "send_400_response": ["self", "msg"],
}


def parameters(method: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(method).parameters)


@pytest.mark.parametrize("ours", OVERRIDDEN)
def test_uvicorn_has_the_methods_that_are_overridden(ours: type) -> None:
    theirs, methods = OVERRIDDEN[ours]
    for name, expected in methods.items():
        assert parameters(getattr(theirs, name)) == expected, name
        assert parameters(getattr(ours, name)) == expected, name


@pytest.mark.parametrize("ours", OVERRIDDEN)
async def test_uvicorn_has_no_members_that_we_override_unknowingly(ours: type) -> None:
    theirs, methods = OVERRIDDEN[ours]
    config = Config(lambda scope: None, lifespan="off")
    config.load()
    their_object: Any
    our_object: Any
    if ours is Server:
        their_object = uvicorn.Server(config)
        our_object = Server(config, Repository(), Settings())
    else:
        state: dict[str, Any] = {}
        arguments = config, ServerState(), state, asyncio.get_running_loop()
        their_object, our_object = HttpToolsProtocol(*arguments), HttpProtocol(*arguments)
    ours_alone = {*vars(ours), *vars(our_object)} - {*vars(their_object), *dir(object)}
    ours_alone -= {"__annotations__", "__module__", *methods}
    assert not [name for name in ours_alone if hasattr(theirs, name)]


async def test_uvicorn_has_what_is_used() -> None:
    for name, expected in CALLED.items():
        assert parameters(getattr(HttpToolsProtocol, name)) == expected, name
    config = Config(lambda scope: None, lifespan="off")
    config.load()
    protocol = HttpToolsProtocol(config, ServerState(), {}, asyncio.get_running_loop())
    protocol.on_message_begin()
    for name in ("loop", "parser", "transport", "logger", "cycle", "scope", "url", "headers"):
        assert hasattr(protocol, name), name
    assert protocol.scope["headers"] is protocol.headers  # trailers go into another list
    server = uvicorn.Server(config)
    assert (server.started, server.should_exit) == (False, False)
    assert hasattr(config, "timeout_graceful_shutdown")
