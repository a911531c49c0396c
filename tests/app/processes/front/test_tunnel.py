"""Connections that the model process serves through a front: what flows, and who ends them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from penstock.app.processes import messages
from penstock.app.processes.control import Control
from penstock.app.processes.front.tunnel import BUFFER_BYTES, Tunnel
from penstock.app.processes.models.tunnels import Tunnels
from penstock.app.server.connections import Connections
from penstock.app.settings import Settings
from penstock.backends.memory import budget

from ...server.wire import LARGE, App, Client, until
from .stub import Model, Parent, front, request

GET = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"


class Served:
    """A front whose tunnels end at an app."""

    def __init__(self, parent: Parent, model: Model, connections: Connections, app: App) -> None:
        self.parent = parent
        self.model = model
        self.connections = connections  # of the model process
        self.app = app

    def tunnels(self) -> list[Tunnel]:
        return [one for one in self.parent.front.connections.open if isinstance(one, Tunnel)]

    async def connect(self, **options: Any) -> Client:
        return await self.parent.connect(**options)


@contextlib.asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[Served]:
    app = App()
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    connections = Connections(Settings(**settings))
    tunnels = Tunnels(config, ServerState(), connections)
    async with front(**settings) as parent:
        model = await parent.link()
        made: dict[int, Any] = {}

        def take(message: tuple[Any, ...], descriptors: Sequence[int]) -> None:
            model.taken.append(message)
            if message[0] == messages.TUNNEL:
                made[message[1]] = tunnels.add(model.packets.send, message, descriptors)
            elif message[0] == messages.LAST and message[1] in made:
                made[message[1]].close_next()

        model.on_message = take
        try:
            yield Served(parent, model, connections, app)
        finally:
            app.gate.set()
            for client in parent.clients:
                client.writer.transport.abort()
            await until(lambda: not connections.open)


async def test_a_connection_comes_back_when_its_tunnel_is_idle() -> None:
    async with served() as server:
        client = await server.connect()
        for _ in range(3):
            client.send(GET % b"echo")
            assert (await client.answer()).startswith(b"HTTP/1.1 200 OK\r\n")
            await until(lambda: server.parent.states() == ["IDLE"])
        await until(lambda: not server.connections.open)
        assert server.model.kinds() == [messages.TUNNEL] * 3
        assert server.app.scopes[0]["client"] == client.writer.get_extra_info("sockname")


async def test_pipelined_requests_are_answered_in_order_by_whatever_way() -> None:
    async with served() as server:
        client = await server.connect()
        server.model.answers = None
        client.send(request("/predict/a", b"1") + GET % b"echo" + request("/predict/a", b"2"))
        await until(lambda: server.model.taken)
        assert server.model.kinds() == [messages.REQUEST]
        server.model.answer(1, b"first")
        assert (await client.answer()).endswith(b"first")
        for _ in range(2):  # the tunnel takes what came behind, too
            assert (await client.answer()).startswith(b"HTTP/1.1 200 OK\r\n")
        assert [scope["path"] for scope in server.app.scopes] == ["/echo", "/predict/a"]


async def test_answers_of_any_size_come_whole() -> None:
    async with served() as server:
        client = await server.connect()
        used = budget.used
        client.send(GET % b"large")
        assert len((await client.answer()).partition(b"\r\n\r\n")[2]) == LARGE
        await until(lambda: server.parent.states() == ["IDLE"])
        assert budget.used == used


async def test_neither_side_is_read_faster_than_the_other_takes() -> None:
    async with served() as server:
        client = await server.connect()
        small = client.writer.get_extra_info("socket")
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        client.send(GET % b"large")
        await until(lambda: server.tunnels() and server.tunnels()[0].send_deadline < 1e300)
        (tunnel,) = server.tunnels()
        held = tunnel._transport.get_write_buffer_size()
        assert BUFFER_BYTES < held < BUFFER_BYTES + (1 << 18)
        await client.answer()
        uploader = await server.connect()
        uploader.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 80000000\r\n\r\n")
        uploader.send(bytes(60_000_000))
        assert (await uploader.head()).startswith(b"HTTP/1.1 404 ")


async def test_a_slow_client_is_late_only_if_it_takes_nothing() -> None:
    async with served() as server:
        client = await server.connect()
        client.send(GET % b"large")
        await until(lambda: server.tunnels() and server.tunnels()[0].send_deadline < 1e300)
        for _ in range(3):
            before = server.tunnels()[0]._taken
            await client.reader.readexactly(600_000)
            await until(lambda before=before: server.tunnels()[0]._taken_now() > before)
            server.parent.pass_time(31)
            assert server.tunnels()
        await asyncio.sleep(0)
        taken = -1
        while taken != (taken := server.tunnels()[0]._taken_now()):
            server.parent.pass_time(31)
            await asyncio.sleep(0.02)
        server.parent.pass_time(31)
        await until(lambda: not server.tunnels())
        assert server.parent.front.connections.closed["late"] == 1


async def test_a_stream_flows_while_it_lasts_and_its_end_is_noticed() -> None:
    async with served() as server:
        client = await server.connect()
        client.send(GET % b"stream")
        await client.head()
        assert await client.reader.readexactly(16) == b"3\r\none\r\n3\r\ntwo\r\n"
        other = await server.connect()
        other.send(GET % b"wait")
        await until(lambda: len(server.app.scopes) == 2)
        other.writer.transport.abort()
        await asyncio.wait_for(server.app.left.wait(), 60)
        server.app.gate.set()
        assert await client.reader.readexactly(5) == b"0\r\n\r\n"


async def test_a_half_closed_client_gets_its_answer() -> None:
    async with served() as server:
        client = await server.connect()
        client.send(GET % b"wait")
        await until(lambda: server.app.scopes)
        client.writer.write_eof()
        await until(lambda: any(c.half_closed for c in server.connections.open))  # type: ignore[attr-defined]
        server.app.gate.set()
        received = await client.all()
        assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
        await until(lambda: not server.tunnels())


@pytest.mark.parametrize("begun", [False, True])
async def test_the_model_process_goes_in_the_middle(begun: bool) -> None:
    async with served() as server:
        client = await server.connect()
        client.send(GET % (b"stream" if begun else b"wait"))
        await until(lambda: server.app.scopes)
        if begun:
            await client.head()
        server.model.packets.close()
        for connection in tuple(server.connections.open):
            connection.abort()
        received = await client.all()
        assert begun or received.startswith(b"HTTP/1.1 503 ")
        assert not received.endswith(b"0\r\n\r\n") and not server.tunnels()


async def test_a_connection_closes_after_its_next_answer_when_its_front_retires() -> None:
    async with served() as server:
        in_tunnel, idle, late = [await server.connect() for _ in range(3)]
        in_tunnel.send(GET % b"wait")
        for client in (idle, late):
            client.send(GET % b"echo")
            await client.answer()
        await until(lambda: server.app.scopes and server.parent.states() == ["IDLE"] * 2)
        server.parent.control.send((Control.RETIRE, 60.0))
        await until(lambda: messages.LAST in server.model.kinds())
        server.app.gate.set()
        assert b"\r\nconnection: close\r\n" in await in_tunnel.all()
        idle.send(GET % b"echo")
        assert b"\r\nconnection: close\r\n" in await idle.all()
        server.parent.pass_time(20)  # nobody is hurried
        late.send(request("/predict/a", b"1"))
        await until(lambda: server.model.bodies)
        assert b"\r\nconnection: close\r\n" in await late.all()
        for client in (in_tunnel, idle, late):
            client.writer.transport.abort()
        await asyncio.wait_for(asyncio.shield(server.parent.running), 60)


async def test_many_requests_of_one_client_through_tunnels_lose_none_when_the_front_retires() -> (
    None
):
    async with served() as server:
        client = await server.connect()
        number = 0
        for number in range(50):
            if number == 25:
                server.parent.control.send((Control.RETIRE, 60.0))
            client.send(GET % b"echo")
            if b"\r\nconnection: close\r\n" in await client.answer():
                break
        assert number >= 25
        assert await client.all() == b""
