"""A front and its parent: connections that are handed over, limits, and the end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import pytest
import trustme
import uvloop
from pydantic import SecretStr
from websockets.sync.client import connect

from penstock.app.processes.control import Control
from penstock.app.processes.messages import TUNNEL
from penstock.app.processes.shares import front_connections, front_memory, models_memory
from penstock.app.settings import Settings
from penstock.backends.expressions.registry import register_backend

from ...server.wire import until
from .door import front_door
from .stub import Parent, front, request

GET = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"


@register_backend("FrontEcho")
async def echo(item: Any, call: Any) -> Any:
    async for chunk in item["data"]:
        yield chunk


def hand_over(parent: Parent, *, whole: bool = True) -> socket.socket:
    """Give the front a connection as its parent does. Return the client's end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with accepted:
        parent.control.send((Control.CONNECTION,), [accepted.fileno()] if whole else ())
    client.setblocking(False)
    return client


def told(parent: Parent, kind: int) -> int:
    return sum(message[1] for message in parent.told if message[0] == kind)


async def test_connections_are_counted_for_the_parent() -> None:
    loop = asyncio.get_running_loop()
    async with front() as parent:
        model = await parent.link()
        clients = [hand_over(parent) for _ in range(3)]
        await until(lambda: told(parent, Control.TAKEN) == 3)
        clients[0].close()
        await until(lambda: told(parent, Control.CLOSED) == 1)
        await loop.sock_sendall(clients[1], GET)  # in a tunnel it is the same connection
        await until(lambda: TUNNEL in model.kinds())
        await loop.sock_sendall(clients[2], request("/predict/a", b"1"))
        assert (await loop.sock_recv(clients[2], 1000)).endswith(b"got 1")
        assert told(parent, Control.CLOSED) == 1
        hand_over(parent, whole=False).close()  # its descriptor was lost
        await until(lambda: told(parent, Control.CLOSED) == 2)
        assert parent.front.connections.closed["descriptors"] == 1
        for client in clients[1:]:
            client.close()
        model.close_tunnels()
        await until(lambda: told(parent, Control.CLOSED) == 4 == told(parent, Control.TAKEN))


async def test_connections_above_the_limit_are_refused() -> None:
    async with front(max_connections=2) as parent:
        await parent.link()
        for _ in range(2):
            (await parent.connect()).send(GET)
        await until(lambda: len(parent.front.connections.open) == 2)
        third = await parent.connect()
        assert b"2 connections already (max_connections)" in await third.all()
        third.writer.transport.abort()


async def test_a_front_that_loses_its_link_ends_so_that_another_one_starts() -> None:
    async with front() as parent:
        parent.control.send((Control.LINK, 1))  # the kernel found no descriptor for it
        await asyncio.wait_for(asyncio.shield(parent.running), 60)


def test_shares_of_the_limits() -> None:
    settings = Settings(max_connections=100, max_memory=1 << 30)
    assert front_connections(settings, 3) == 34
    assert front_memory(settings, 4) == 1 << 27
    assert models_memory(settings) == 1 << 29
    unset = Settings()
    assert front_connections(unset, 3) is None
    assert front_memory(unset, 2) * 2 <= models_memory(unset) * 1.1


def test_the_end_of_a_front_closes_what_is_open() -> None:
    """uvloop can't close itself while transports are open."""

    async def run() -> None:
        async with front() as parent:
            model = await parent.link()
            client = await parent.connect()
            client.send(GET)
            waiting = await parent.connect()
            waiting.send(request("/predict/a", b"1")[:-1])
            await until(lambda: TUNNEL in model.kinds() and parent.states() == ["BODY"])
            parent.control.send((Control.END, 0.0))
            await asyncio.wait_for(asyncio.shield(parent.running), 60)
            assert await client.all() == b"" == await waiting.all()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def test_a_front_ends_with_its_parent() -> None:
    async with front(drain_timeout=0.01) as parent:
        client = await parent.connect()
        parent.control.close()
        await asyncio.wait_for(asyncio.shield(parent.running), 60)
        assert await client.all() == b""


def test_tls_and_websockets(tmp_path: Any) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    file = tmp_path / "server.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(file)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stream = {"name": "echo", "inputs": {"data": {"kind": "bytes", "stream": True}}}
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    settings = {"ssl_certfile": file, "api_key": SecretStr("key")}
    tables = ({"pipeline": stream, "node": {"backend": "FrontEcho"}}, PIPELINE)
    with front_door(*tables, **settings) as (door, _):
        url = f"wss://127.0.0.1:{door.port}/predict/echo/stream"
        key = {"Authorization": "Bearer key"}
        with connect(url, ssl=context, additional_headers=key, open_timeout=60) as opened:
            for content in (b"a", bytes(300_000), b"b"):
                opened.send(content)
                assert opened.recv(timeout=60) == content
        with context.wrap_socket(door.connect(), server_hostname="127.0.0.1") as client:
            for path in ("/predict/same", "/predict/same/batch"):
                client.sendall(request(path, b"[]", b"Authorization: Bearer key"))
                assert client.recv(1000).startswith(b"HTTP/1.1 ")
        wrong = {"Authorization": "Bearer wrong"}
        with (
            pytest.raises(Exception, match="unauthorized"),
            connect(url, ssl=context, additional_headers=wrong, open_timeout=60) as refused,
        ):
            refused.recv(timeout=60)


PIPELINE = {"pipeline": {"name": "same"}, "node": {"backend": "Identity"}}
