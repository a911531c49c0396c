"""The connection: what it parses, what it refuses, what it holds, and when it ends."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import os
import socket
import struct
import weakref
from typing import Any

import httptools
import pytest
import uvloop

from penstock.app.http.events import ENDLESS
from penstock.app.server.connection import HELD_BODY_BYTES, KEPT_BODY_BYTES, UNCOUNTED_BYTES
from penstock.app.server.connections import REASONS, default_max_connections
from penstock.app.server.socket_states import queued_bytes
from penstock.backends.memory import MemoryBudget

from .wire import LARGE, Served, served, until

HOST = b"Host: x\r\n"
GET = b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n"
CLOSING = b"GET /echo HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> MemoryBudget:
    """A budget of the test's own."""
    own = MemoryBudget(1 << 30)
    monkeypatch.setattr("penstock.app.server.connection.budget", own)
    return own


def post(body: bytes, path: bytes = b"/echo", more: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (
        path,
        HOST,
        more,
        len(body),
        body,
    )


def chunked(*chunks: bytes, path: bytes = b"/echo", trailers: bytes = b"") -> bytes:
    pieces = b"".join(b"%x;a=b\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return (
        b"POST %b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (path, HOST)
        + pieces
        + b"0\r\n"
        + trailers
        + b"\r\n"
    )


def problem_of(answer: bytes) -> Any:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json\r\n" in head + b"\r\n"
    problem = json.loads(body)
    assert problem["status"] == int(answer[9:12])
    return problem


# Requests and answers.


@pytest.mark.parametrize("size", [0, 1, 1000, HELD_BODY_BYTES * 3])
@pytest.mark.parametrize("make", [post, chunked])
async def test_bodies_come_back_and_the_connection_stays(size: int, make: Any) -> None:
    async with served() as server:
        client = await server.connect()
        body = bytes(size)
        for _ in range(3):
            client.send(make(body) if size or make is post else chunked())
            answer = await client.answer()
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(body)
        assert server.state.total_requests == 3 and server.states() == ["IDLE"]


@pytest.mark.parametrize("request_bytes", [post(b"abc" * 9), chunked(b"ab", b"c" * 20), GET])
async def test_requests_may_come_byte_by_byte_or_together(request_bytes: bytes) -> None:
    async with served() as server:
        client = await server.connect()
        for number in range(len(request_bytes)):
            client.send(request_bytes[number : number + 1])
            await client.writer.drain()
            if number % 7 == 0:
                await asyncio.sleep(0)
        first = await client.answer()
        client.send(request_bytes * 5)
        for _ in range(5):
            assert await client.answer() == first
        for cut in range(1, len(request_bytes)):
            client.send(request_bytes[:cut])
            await asyncio.sleep(0.001)  # so that they are read one by one
            client.send(request_bytes[cut:])
            assert await client.answer() == first


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"a:",
        b"127.0.0.1:8000",
        b"[::1]:8000",
        b"[fe80::1%25eth0]",
        b"x_y.example.com.",
        b"%61",
    ],
)
async def test_hosts_that_are_answered(host: bytes) -> None:
    async with served() as server:
        client = await server.connect()
        for _ in range(2):
            client.send(b"GET /echo HTTP/1.1\r\nHost: " + host + b" \r\n\r\n")
            assert (await client.answer()).startswith(b"HTTP/1.1 200")


async def test_the_scope(caplog: pytest.LogCaptureFixture) -> None:
    async with served(root_path="/root") as server:
        client = await server.connect()
        client.send(b"PUT /a%20b/echo?c=%20d#e HTTP/1.1\r\nHOST: x\r\nX-Y:  z\r\n\r\n")
        await client.answer()
        client.send(b"GET http://host/echo?q HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.answer()
        first, second = server.app.scopes
        first["state"]["key"] = "changed"
        assert (first["method"], first["path"]) == ("PUT", "/root/a b/echo")
        assert (first["raw_path"], first["query_string"]) == (b"/root/a%20b/echo", b"c=%20d")
        assert first["headers"] == [(b"host", b"x"), (b"x-y", b"z")]
        assert first["client"][0] == "127.0.0.1" and first["server"] == ("127.0.0.1", server.port)
        assert first["http_version"] == "1.1" and first["scheme"] == "http"
        assert (second["path"], second["query_string"]) == ("/root/echo", b"q")
        assert second["state"] == {"key": "value"}


async def test_chunks_are_counted_and_trailers_dropped() -> None:
    async with served() as server:
        client = await server.connect()
        client.send(chunked(b"a", b"b", b"c" * 100, trailers=b"X-Late: 1\r\n"))
        assert (await client.answer()).endswith(b"ab" + b"c" * 100)
        scope = server.app.scopes[0]
        assert scope["penstock.chunks"] == 4
        assert [name for name, _ in scope["headers"]] == [b"host", b"transfer-encoding"]


async def test_many_small_chunks_leave_the_loop_to_others() -> None:
    async with served() as server:
        client = await server.connect()
        client.send(chunked(*[b"x"] * 50_000))
        assert (await client.answer()).endswith(b"x" * 50_000)


async def test_an_answer_without_a_length() -> None:
    async with served() as server:
        server.app.gate.set()
        client = await server.connect()
        client.send(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n")
        assert b"transfer-encoding: chunked\r\n" in await client.head()
        assert await client.reader.readuntil(b"0\r\n\r\n") == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        client.send(GET)
        await client.answer()
        # HTTP/1.0 knows no chunks: the end of the connection ends the answer.
        old = await server.exchange(b"GET /stream HTTP/1.0\r\n\r\n")
        assert b"chunked" not in old and old.endswith(b"\r\n\r\nonetwo")
        head = await server.exchange(
            b"HEAD /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert head.endswith(b"\r\n\r\n")


async def test_a_head_does_not_wait_for_a_body_that_comes_later() -> None:
    async with served() as server:
        client = await server.connect()
        client.send(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n")
        await client.head()
        assert server.states() == ["ANSWERING"] and not server.app.gate.is_set()


async def test_head_and_body_are_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served() as server:
        client = await server.connect()
        await until(lambda: server.open)
        writes: list[Any] = []
        (connection,) = server.open
        transport = connection._transport
        for name in ("write", "writelines"):
            real = getattr(transport, name)

            def write(data: Any, real: Any = real) -> None:
                writes.append(data)
                real(data)

            monkeypatch.setattr(transport, name, write)
        client.send(post(b"small"))
        await client.answer()
        client.send(b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n")
        await client.answer()
        small, (_, large), *_ = writes  # asyncio writes what `writelines` has joined
        assert small.startswith(b"HTTP/1.1 200") and small.endswith(b"\r\n\r\nsmall")
        assert len(large) == LARGE  # not copied to the head


async def test_head_requests_have_no_body() -> None:
    async with served() as server:
        client = await server.connect()
        client.send(b"HEAD /large HTTP/1.1\r\n" + HOST + b"\r\n" + CLOSING)
        received = await client.all()
        assert received.count(b"HTTP/1.1 200 OK") == 2 and len(received) < 500


async def test_an_answer_without_a_body_has_none(caplog: pytest.LogCaptureFixture) -> None:
    """Its bytes would be taken for the next answer."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"HTTP/1.1 200 OK\r\n\r\n"})

    async with served() as server:
        server.app.__class__ = type("Bad", (type(server.app),), {"__call__": staticmethod(app)})
        answer = await server.exchange(GET)
        assert answer == b"HTTP/1.1 204 No Content\r\n\r\n"
        assert "longer than Content-Length" in caplog.text


@pytest.mark.parametrize("path", [b"/echo", b"/early"])
async def test_a_client_that_waits_for_100_continue(path: bytes) -> None:
    async with served() as server:
        client = await server.connect()
        body = post(b"abc", path, b"Expect: 100-continue\r\n")
        client.send(body[:-3])
        if path == b"/echo":
            assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"abc")
            assert (await client.answer()).endswith(b"abc")
        else:  # the body may come or not, so the connection can't go on
            answer = await client.all()
            assert answer.startswith(b"HTTP/1.1 404") and b"connection: close\r\n" in answer


@pytest.mark.parametrize("offer", [b"h2c", b"websocket"])
@pytest.mark.parametrize("make", [post, chunked])
async def test_an_offer_to_upgrade_is_ignored(offer: bytes, make: Any) -> None:
    more = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + offer + b"\r\n"
    request = make(b"abc").replace(HOST, HOST + more)
    async with served() as server:
        client = await server.connect()
        client.send(request * 2)
        for _ in range(2):
            assert (await client.answer()).endswith(b"abc")


async def test_an_app_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as server:
        answer = await server.exchange(b"GET /raise HTTP/1.1\r\n" + HOST + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 500") and b"connection: close\r\n" in answer
        assert "a mistake" in caplog.text
        answer = await server.exchange(post(b"abc", b"/broken"))
        assert answer.endswith(b"\r\n\r\n")  # cut off, so that the client sees it
        assert "without completing response" in caplog.text


async def test_what_an_app_sends_is_checked(caplog: pytest.LogCaptureFixture) -> None:
    from penstock.app.server.asgi import _checked_name

    with pytest.raises(RuntimeError, match="name"):
        _checked_name(b"a b")
    for headers in ([(b"a", b"b\r\nc: d")], [(b"a", b"b\nc")], [(b"a", b"\0")], [(b"a:", b"")]):

        async def app(scope: Any, receive: Any, send: Any, headers: Any = headers) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": headers})

        async with served() as server:
            server.app.__class__ = type("Bad", (type(server.app),), {"__call__": staticmethod(app)})
            answer = await server.exchange(GET)
            assert answer.startswith(b"HTTP/1.1 500"), headers


async def test_the_access_log(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("penstock.access").addHandler(logging.NullHandler())
    with caplog.at_level(logging.INFO, "penstock.access"):
        async with served() as server:
            await server.exchange(CLOSING.replace(b"/echo", b"/echo?a=b"))
    assert '- "GET /echo?a=b HTTP/1.1" 200' in caplog.text


# What is refused.


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a:port\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: caf\xc3\xa9\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"GET /\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Length: 3\r\n\r\n",
            400,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\tc\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\nA: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA\x00: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\x00\r\n\r\n", 400),
        (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),  # TLS
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 70_000, 431),
        (b"GET /" + b"b" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 100 + b"\r\n", 431),
    ],
)
@pytest.mark.parametrize("first", [b"", GET])
async def test_heads_that_are_refused(
    head: bytes, status: int, first: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as server:
        answer = await server.exchange(first + head)
        if first:
            end = answer.index(b"\r\n\r\n") + 4
            assert answer.startswith(b"HTTP/1.1 200")
            answer = answer[end:]
        assert b"connection: close\r\n" in answer
        problem = problem_of(answer)
        assert problem["status"] == status
        assert problem["code"] == ("too_large" if status == 431 else "invalid_request")
        assert server.connections.closed == dict.fromkeys(REASONS, 0) | {"malformed": 1}
        assert len(server.app.scopes) == bool(first)
        assert "refused: " in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        b"x\r\n",
        b"3\nabc\r\n",
        b"3\r\nabcd\r\n",
        b"3 \r\nabc\r\n",
        b"-1\r\n",
        b"0x3\r\nabc\r\n",
        b"1" * 17 + b"\r\n",
        b"3;" + b"e" * 5000,
        b"3;a\rb\r\nabc\r\n",
        b"0\r\nA b: c\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * 101 + b"\r\n",
        b"0\r\nA: " + b"b" * 70_000,
    ],
)
async def test_chunks_that_are_refused(body: bytes) -> None:
    async with served() as server:
        client = await server.connect()
        client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        assert problem_of(await client.all())["status"] == 400
        await until(server.app.left.is_set)
        assert server.state.total_requests == 0


async def test_heads_within_the_limits_are_read() -> None:
    async with served() as server:
        fields = b"".join(b"X-%d: %b\r\n" % (number, b"v" * 600) for number in range(97))
        answer = await server.exchange(CLOSING.replace(HOST, HOST + fields))
        assert answer.startswith(b"HTTP/1.1 200")
    async with served(max_head=4096, max_fields=2) as server:
        assert (await server.exchange(CLOSING)).startswith(b"HTTP/1.1 200")
        assert (await server.exchange(CLOSING.replace(HOST, HOST + b"A: b\r\n")))[9:12] == b"431"


async def test_blank_lines_may_stand_before_a_request() -> None:
    async with served() as server:
        answer = await server.exchange(b"\r\n\r\n" + GET + b"\r\n" + CLOSING)
        assert answer.count(b"HTTP/1.1 200") == 2


# What is held.


async def test_nothing_is_parsed_while_a_request_is_in_hand(budget: MemoryBudget) -> None:
    async with served() as server:
        client = await server.connect()
        client.send(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
        await until(lambda: server.app.scopes)
        sent = 0
        while sent < 64 << 20:
            client.send(GET * 10_000)
            sent += len(GET) * 10_000
            try:
                await asyncio.wait_for(client.writer.drain(), 0.2)
            except TimeoutError:
                break
        assert sent < 32 << 20  # no more than the sockets' buffers hold
        (connection,) = server.open
        assert len(server.app.scopes) == 1
        assert connection._counted == len(connection._buffer) + connection._head_bytes <= 1 << 18
        assert budget.used >= connection._counted
    assert budget.used == 0


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with served() as server:
        client = await server.connect()
        client.send(b"".join(post(b"%d" % number) for number in range(2000)))
        for number in range(2000):
            assert (await client.answer()).endswith(b"\r\n\r\n%d" % number)


async def end_by_send_timeout(server: Served) -> None:
    """Let `send_timeout` pass until the server has closed. What the client's kernel still takes is
    progress.
    """
    async with asyncio.timeout(60):
        while server.open:
            server.pass_time(31)
            await asyncio.sleep(0.001)


async def test_a_client_that_does_not_read_gets_no_further_answers(budget: MemoryBudget) -> None:
    async with served() as server:
        client = await server.connect(limit=1024)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(b"GET /large HTTP/1.1\r\n%b\r\n" % HOST * 3)
        await until(lambda: server.app.scopes and server.open[0].writing_paused)
        (connection,) = server.open
        assert len(server.app.scopes) == 1
        assert LARGE <= connection._counted <= LARGE + 1024  # the loop keeps it whole
        assert budget.used == connection._counted
        server.pass_time(29)  # it is slow, but not late
        assert connection.state.name != "CLOSING"
        await end_by_send_timeout(server)
        assert server.connections.closed["late"] == 1 and budget.used == 0


async def test_a_client_that_reads_slowly_is_not_late() -> None:
    async with served() as server:
        client = await server.connect(limit=1 << 16)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await until(lambda: server.open and server.open[0].writing_paused)
        (connection,) = server.open
        before = connection._transport.get_write_buffer_size()
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await client.reader.readexactly(LARGE // 4)
        await until(lambda: connection._transport.get_write_buffer_size() < before)
        server.pass_time(31)
        assert server.connections.closed["late"] == 0
        assert len(await client.all()) > LARGE // 2


async def test_a_client_is_not_late_while_only_the_kernels_queue_shrinks() -> None:
    async with served() as server:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            await loop.sock_sendall(client, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: server.open and server.open[0].writing_paused)
            (connection,) = server.open
            transport = connection._transport

            def left() -> int:
                queued = queued_bytes(transport.get_extra_info("socket"))
                return queued + transport.get_write_buffer_size()

            for _ in range(8):
                before = left()
                while left() >= before:  # its system takes more once the client has read some
                    await asyncio.wait_for(loop.sock_recv(client, 4096), 60)
                    await asyncio.sleep(0)
                server.pass_time(31)
                assert server.open and server.connections.closed["late"] == 0
            await end_by_send_timeout(server)
            assert server.connections.closed["late"] == 1


async def test_a_refused_client_that_leaves_a_little_unread_is_not_waited_for() -> None:
    async with served() as server:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            await until(lambda: server.open)
            (connection,) = server.open
            transport = connection._transport
            while not transport.get_write_buffer_size():  # fill the kernel's queue
                transport.write(b"x" * 1024)
            await loop.sock_sendall(client, b"nonsense\r\n\r\n")
            await until(lambda: connection.state.name == "DISCARDING")
            assert transport.get_write_buffer_size() and not connection.writing_paused
            server.pass_time(server.connections.settings.discard_timeout + 1)
            await end_by_send_timeout(server)
            assert server.connections.closed["late"] == 1


@pytest.mark.parametrize("full", ["before the drain", "by its last bytes"])
async def test_a_drain_does_not_wait_for_a_client_that_watches_and_does_not_read(full: str) -> None:
    async with served() as server:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            await loop.sock_sendall(client, b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: server.states() == ["ANSWERING"])
            server.app.scopes[0][ENDLESS] = True
            (connection,) = server.open
            transport = connection._transport
            if full == "by its last bytes":
                server.connections.drain()
            while not transport.get_write_buffer_size():  # fill the kernel's queue
                transport.write(b"x" * 1024)
            if full == "before the drain":
                server.connections.drain()
            else:
                server.app.gate.set()
            await until(lambda: not server.open)
            server.app.gate.set()


def test_a_socket_that_tells_nothing_of_its_queue() -> None:
    with socket.socket() as connection:
        assert queued_bytes(connection) == 0
    assert queued_bytes(connection) == 0


async def test_answers_count_until_the_memory_is_full(budget: MemoryBudget) -> None:
    budget.limit = 1 << 20
    async with served() as server:
        client = await server.connect(limit=1024)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(b"GET /large HTTP/1.1\r\n%b\r\n" % HOST)
        await until(lambda: server.connections.closed["memory"])
        await until(lambda: not server.open)
        assert (await server.exchange(CLOSING)).startswith(b"HTTP/1.1 200")


async def test_bodies_and_heads_count_until_they_are_taken(budget: MemoryBudget) -> None:
    budget.limit = UNCOUNTED_BYTES * 2
    async with served() as server:
        head = CLOSING[:-2] + b"A: " + b"b" * UNCOUNTED_BYTES
        holding, refused = await server.connect(), await server.connect()
        holding.send(head)
        await until(lambda: budget.used)
        refused.send(head)
        answer = await refused.all()
        assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 1\r\n" in answer
        assert problem_of(answer)["code"] == "memory_full"
        # The app that reads a body gets the error, and may answer.
        client = await server.connect()
        client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        client.send(bytes(99_000))
        assert (await client.all()).startswith(b"HTTP/1.1 500")
        assert "max_memory" in str(server.app.errors[0])
        holding.send(b"\r\n\r\n")
        assert (await holding.all()).startswith(b"HTTP/1.1 200")
    assert budget.used == 0


async def test_a_body_that_the_app_does_not_take_is_not_read() -> None:
    async with served() as server:
        client = await server.connect()
        started = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            started.set()
            await server.app.gate.wait()

        server.app.__class__ = type("Lazy", (type(server.app),), {"__call__": staticmethod(app)})
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        client.send(bytes(1 << 20))
        await started.wait()
        await until(lambda: server.open[0]._reading is False)
        (connection,) = server.open
        assert connection._request is not None
        assert HELD_BODY_BYTES < len(connection._request.body) < HELD_BODY_BYTES + (1 << 18)
        assert connection._counted == connection._head_bytes + len(connection._request.body)


async def test_a_connection_leaves_nothing() -> None:
    async with served() as server:
        gc.collect()
        gc.disable()
        try:
            ends = []
            for how in ("FIN", "RST"):
                client = await server.connect()
                client.send(post(b"abc"))
                await client.answer()
                (connection,) = server.open
                ends.append(weakref.ref(connection))
                del connection
                if how == "RST":
                    client.writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                client.writer.close()
                await until(lambda: not server.open)
                await asyncio.sleep(0)
                assert ends[-1]() is None, how
        finally:
            gc.enable()


async def test_a_request_leaves_no_garbage() -> None:
    async with served() as server:
        client = await server.connect()
        client.send(post(b"abc"))
        await client.answer()
        gc.collect()
        gc.disable()
        try:
            for _ in range(100):
                client.send(post(b"abc"))
                await client.answer()
            await asyncio.sleep(0)
            before = gc.collect()
        finally:
            gc.enable()
        assert before < 100


# Time.


async def test_the_timeouts_of_each_state() -> None:
    settings: Any = {"idle_timeout": 10, "head_timeout": 20, "body_timeout": 30}
    async with served(**settings) as server:
        silent = await server.connect()
        await until(lambda: server.states() == ["IDLE"])
        server.pass_time(19)
        assert server.states() == ["IDLE"]
        server.pass_time(20.5)
        assert await silent.all() == b""

        slow = await server.connect()
        slow.send(GET[:10])
        await until(lambda: "HEAD" in server.states())
        (connection,) = server.open
        first_deadline = connection.deadline
        slow.send(GET[10:20])
        await until(lambda: len(connection._buffer) == 20)
        assert connection.deadline == first_deadline  # no later byte renews it
        server.pass_time(20.5)
        answer = await slow.all()
        assert answer.startswith(b"HTTP/1.1 408") and "head_timeout" in problem_of(answer)["detail"]
        slow.writer.close()
        await until(lambda: not server.open)

        idle = await server.connect()
        idle.send(GET)
        await idle.answer()
        server.pass_time(9)
        assert server.states() == ["IDLE"]
        server.pass_time(10.5)
        assert await idle.all() == b""

        body = await server.connect()
        body.send(post(b"abc")[:-1])
        await until(lambda: server.states() == ["BODY"])
        server.pass_time(29)
        assert not server.app.errors
        server.pass_time(31.5)
        await body.all()
        assert "body_timeout" in str(server.app.errors[0])
        assert server.connections.closed["late"] == 2


def test_a_body_that_arrives_while_the_loop_stands_still_is_in_time() -> None:
    """uvloop calls timers that are due before it reads."""

    async def late() -> bytes:
        async with served() as server:
            client = await server.connect()
            client.send(post(b"abc")[:-1])
            await until(lambda: server.states() == ["BODY"])
            loop = asyncio.get_running_loop()
            server.open[0].deadline = loop.time() - 1
            connection = client.writer.get_extra_info("socket")
            os.write(connection.fileno(), b"c")
            server.connections.tick(loop)
            return await client.answer()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answer = runner.run(late())
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"abc")


async def test_handling_has_no_timeout() -> None:
    async with served() as server:
        client = await server.connect()
        client.send(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
        await until(lambda: server.states() == ["HANDLING"])
        assert server.open[0].deadline == math.inf
        server.pass_time(1e6)
        server.app.gate.set()
        assert (await client.answer()).startswith(b"HTTP/1.1 200")


async def test_a_client_that_says_it_is_the_last_request() -> None:
    """Nothing will follow, so the server closes without waiting for the client's end."""
    async with served() as server:
        client = await server.connect()
        client.send(CLOSING)
        assert (await client.all()).startswith(b"HTTP/1.1 200")
        await until(lambda: not server.open)


async def test_the_rest_of_a_small_body_is_thrown_away() -> None:
    async with served() as server:
        client = await server.connect()
        body = post(bytes(KEPT_BODY_BYTES), b"/early")
        client.send(body[:1000])
        assert (await client.answer()).startswith(b"HTTP/1.1 404")
        assert server.states() == ["DISCARDING"]
        client.send(body[1000:] + GET)
        assert (await client.answer()).startswith(b"HTTP/1.1 200")


async def test_the_rest_of_a_large_body_is_thrown_away_within_bytes_and_seconds() -> None:
    async with served(max_discard=1 << 22, discard_timeout=5) as server:
        client = await server.connect()
        client.send(post(bytes(1 << 22), b"/early"))
        client.writer.write_eof()
        answer = await client.all()
        assert answer.startswith(b"HTTP/1.1 404") and b"connection: close\r\n" in answer
        await until(lambda: not server.open)

        large = await server.connect()
        large.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n")
        assert (await large.all()).startswith(b"HTTP/1.1 404")
        sent = 0
        try:
            while sent < 1 << 27:
                large.send(bytes(1 << 20))
                await large.writer.drain()
                sent += 1 << 20
        except OSError:
            pass
        assert 1 << 22 <= sent < 1 << 25

        late = await server.connect()
        late.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n")
        assert (await late.all()).startswith(b"HTTP/1.1 404")
        assert server.states() == ["DISCARDING"]
        server.pass_time(4)
        assert server.states() == ["DISCARDING"]
        server.pass_time(5.5)
        await until(lambda: not server.open)


# How many.


async def test_connections_above_the_limit_get_an_answer() -> None:
    async with served(max_connections=2) as server:
        kept = [await server.connect() for _ in range(2)]
        await until(lambda: len(server.open) == 2)
        answer = await server.exchange(GET)
        assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 1\r\n" in answer
        assert problem_of(answer)["code"] == "not_ready"
        assert server.connections.closed["refused"] == 1
        kept[0].writer.close()
        server.clients[-1].writer.close()
        await until(lambda: len(server.open) == 1)
        assert (await server.exchange(CLOSING)).startswith(b"HTTP/1.1 200")


def test_the_default_leaves_descriptors_to_others() -> None:
    assert [default_max_connections(number) for number in (64, 1024, 65536)] == [32, 896, 65408]


async def test_the_end_waits_for_requests_under_way() -> None:
    async with served(drain_grace=3) as server:
        idle, half, waiting = [await server.connect() for _ in range(3)]
        idle.send(GET)
        await idle.answer()
        half.send(post(b"abc")[:-1])
        waiting.send(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
        await until(lambda: sorted(server.states()) == ["BODY", "HANDLING", "IDLE"])
        server.connections.drain()
        idle.send(GET)
        answer = await idle.all()
        assert answer.startswith(b"HTTP/1.1 200") and b"connection: close\r\n" in answer
        idle.writer.close()
        server.app.gate.set()
        assert b"connection: close\r\n" in await waiting.all()
        waiting.writer.close()
        lingering = await server.connect()
        lingering.send(post(b"abc", b"/early", b"Expect: 100-continue\r\n")[:-3])
        assert (await lingering.all()).startswith(b"HTTP/1.1 404")  # and it does not close
        server.pass_time(3.5)
        await half.all()
        assert "shutting down" in str(server.app.errors[0])
        half.writer.close()
        await until(lambda: not server.open)


def test_httptools_is_strict() -> None:
    """The connection leaves these to it: version 0.6.0 took a folded line."""
    for head in (
        b"Host: a\nA: b",
        b"Host: a\r\n b",
        b"Host : a",
        b"Transfer-Encoding: \x0bchunked",
    ):
        parser = httptools.HttpRequestParser(object())
        with pytest.raises(httptools.HttpParserError):
            parser.feed_data(b"GET / HTTP/1.1\r\n" + head + b"\r\n\r\n")
