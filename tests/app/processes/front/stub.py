"""A front in the loop of the test, with a stub in the place of the model process: it notes what
crosses, and answers as the test says.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from penstock.app.processes import messages
from penstock.app.processes.arena import Arena, Mapping
from penstock.app.processes.control import Control
from penstock.app.processes.front.nodes import FrontNodes
from penstock.app.processes.front.process import Front
from penstock.app.processes.messages import LAST, TUNNEL
from penstock.app.processes.packets import INLINE_BYTES, Packets
from penstock.app.server.connection import Connection
from penstock.app.settings import Settings

from ...server.wire import Client, until

HEAD = b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: %d\r\n"


def request(path: str, body: bytes = b"", *lines: bytes) -> bytes:
    head = [b"POST %b HTTP/1.1" % path.encode(), b"Host: a", b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*head, *lines, b"", body])


class Model:
    """The other end of a link. `answers` makes the answer to a body; None: the test sends it."""

    def __init__(self, end: socket.socket) -> None:
        self.on_message: Callable[[tuple[Any, ...], Sequence[int]], None] | None = None
        self.packets = Packets(end, self._take, lambda: None)
        self.arena = Arena(1 << 26)
        self.mapping: Mapping | None = None
        self.taken: list[tuple[Any, ...]] = []
        self.tunnels: dict[int, socket.socket] = {}
        self.bodies: dict[int, bytes] = {}
        self.answers: Callable[[bytes], bytes] | None = lambda body: b"got " + body
        self.says_hello = True
        self.packets.start()

    def _take(self, message: tuple[Any, ...], descriptors: Sequence[int]) -> None:
        kind = message[0]
        if kind == messages.HELLO:
            self.mapping = Mapping(descriptors[0])
            if self.says_hello:
                self.packets.send((messages.HELLO,), [self.arena.descriptor])
            return
        if self.on_message is not None and kind in (TUNNEL, LAST):
            self.on_message(message, descriptors)
            return
        self.taken.append(message)
        if kind == TUNNEL:
            self.tunnels[message[1]] = socket.socket(fileno=descriptors[0])
            self.tunnels[message[1]].setblocking(False)
        elif kind == messages.FREE:
            for offset in message[1]:
                self.arena.free(offset)
        elif kind in (messages.REQUEST, messages.BODY):
            body = message[3] if kind == messages.REQUEST else message[2]
            if isinstance(body, tuple):
                assert self.mapping is not None
                content = bytes(self.mapping.view(*body))
                self.packets.send((messages.FREE, [body[0]]))
                body = content
            self.bodies[message[1]] = body
            if self.answers is not None:
                self.answer(message[1], self.answers(body))

    def answer(self, number: int, content: bytes, keep_alive: bool = True, log: Any = None) -> None:
        body: Any = content if len(content) <= INLINE_BYTES else self.arena.put(content)
        head = HEAD % len(content)
        self.packets.send((messages.ANSWER, number, 200, head, body, keep_alive, log))

    def kinds(self) -> list[int]:
        return [message[0] for message in self.taken if message[0] != messages.FREE]

    async def tunnel(self, number: int = 0) -> socket.socket:
        await until(lambda: self.tunnels)
        return self.tunnels[number or max(self.tunnels)]

    def close_tunnels(self) -> None:
        for end in self.tunnels.values():
            end.close()

    def close(self) -> None:
        self.packets.close()
        self.arena.close()
        if self.mapping is not None:
            self.mapping.close()


class Parent:
    """The parent of a front, which listens."""

    def __init__(self, front: Front, control: Packets, told: list[tuple[Any, ...]], port: int):
        self.front = front
        self.told = told
        self.port = port
        self.control = control
        self.models: list[Model] = []
        self.clients: list[Client] = []
        self.running: asyncio.Task[None]

    async def link(self, **attributes: Any) -> Model:
        """Link a new model process."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        model = Model(here)
        vars(model).update(attributes)
        self.models.append(model)
        serial = len(self.models)
        with there:
            self.control.send((Control.LINK, serial), [there.fileno()])
        if model.says_hello:
            await until(lambda: (Control.LINKED, serial) in self.told)
        return model

    async def connect(self, **options: Any) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, **options))
        self.clients.append(client)
        return client

    def states(self) -> list[str]:
        connections = self.front.connections.open
        return [c.state.name for c in connections if isinstance(c, Connection)]

    def pass_time(self, seconds: float) -> None:
        """Let the connections see a later time."""
        self.front.connections.look(asyncio.get_running_loop().time() + seconds)


@contextlib.asynccontextmanager
async def front(
    tls: Any = None, nodes: FrontNodes | None = None, **settings: Any
) -> AsyncIterator[Parent]:
    """Run a front that listens. Nothing may be left of it at the end."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told: list[tuple[Any, ...]] = []
    control = Packets(here, lambda message, descriptors: told.append(message), lambda: None)
    control.start()
    running = Front(Settings(**settings), there, tls, nodes)
    task = asyncio.get_running_loop().create_task(running.run())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        control.send((Control.LISTEN,), [listener.fileno()])
        parent = Parent(running, control, told, listener.getsockname()[1])
        parent.running = task
        try:
            yield parent
        finally:
            for client in parent.clients:
                client.writer.transport.abort()
            for model in parent.models:
                model.close_tunnels()
            control.send((Control.END, 60.0))
            await asyncio.wait_for(task, 60)
            for model in parent.models:
                model.close()
            control.close()
            assert not running.connections.open
