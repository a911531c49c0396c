"""A small ASGI app on `Connection`, in the loop of the test, whose deadlines the test moves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from penstock.app.server.connection import Connection
from penstock.app.server.connections import Connections
from penstock.app.settings import Settings

LARGE = 8 << 20


class App:
    """An app whose paths are what it does. It notes the requests, and how they ended."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.gate = asyncio.Event()
        self.left = asyncio.Event()
        self.errors: list[Exception] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        name = scope["path"].rpartition("/")[2]
        body = b""
        if name != "early":
            body = await self._read(receive)
        if name == "wait":
            left = asyncio.ensure_future(receive())
            gate = asyncio.ensure_future(self.gate.wait())
            await asyncio.wait([left, gate], return_when=asyncio.FIRST_COMPLETED)
            if left.done():
                self.left.set()
            left.cancel()
            gate.cancel()
        if name == "raise":
            raise ValueError("a mistake")
        if name == "large":
            body = bytes(LARGE)
        status = 404 if name == "early" else 200
        headers = [] if name == "stream" else [(b"Content-Length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if name == "stream":
            for piece in (b"one", b"", b"two"):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await self.gate.wait()
        if name == "broken":
            return
        await send({"type": "http.response.body", "body": body})

    async def _read(self, receive: Receive) -> bytes:
        pieces = []
        while True:
            try:
                message = await receive()
            except Exception as error:
                self.errors.append(error)
                raise
            if message["type"] == "http.disconnect":
                self.left.set()
                return b""
            pieces.append(message["body"])
            if not message["more_body"]:
                return b"".join(pieces)


class Client:
    """A client that sends bytes and reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 60)

    async def answer(self) -> bytes:
        """Return one whole answer, which has a Content-Length."""
        head = await self.head()
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return head + await asyncio.wait_for(self.reader.readexactly(int(length or 0)), 60)

    async def all(self) -> bytes:
        """Return what comes until the server closes, in order or not."""
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while more := await asyncio.wait_for(self.reader.read(1 << 20), 60):
                received += more
        return received


class Served:
    """An `App` that listens."""

    def __init__(self, port: int, app: App, connections: Connections, state: ServerState) -> None:
        self.port = port
        self.app = app
        self.connections = connections
        self.state = state
        self.clients: list[Client] = []

    async def connect(self, **options: Any) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, **options))
        self.clients.append(client)
        return client

    async def exchange(self, data: bytes) -> bytes:
        """Return what comes for `data` until the server closes."""
        client = await self.connect()
        client.send(data)
        return await client.all()

    def pass_time(self, seconds: float) -> None:
        """Let the connections see a later time."""
        self.connections.look(asyncio.get_running_loop().time() + seconds)

    def states(self) -> list[str]:
        return [connection.state.name for connection in self.open]

    @property
    def open(self) -> list[Connection]:
        return [c for c in self.connections.open if isinstance(c, Connection)]


@contextlib.asynccontextmanager
async def served(root_path: str = "", **settings: Any) -> AsyncIterator[Served]:
    app = App()
    config = uvicorn.Config(app, lifespan="off", log_config=None, root_path=root_path)
    config.load()
    connections = Connections(Settings(**settings))
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        partial(
            Connection, connections, config=config, server_state=state, app_state={"key": "value"}
        ),
        "127.0.0.1",
        0,
    )
    serving = Served(server.sockets[0].getsockname()[1], app, connections, state)
    try:
        yield serving
    finally:
        server.close()
        app.gate.set()
        for client in serving.clients:
            client.writer.transport.abort()
        await until(lambda: not connections.open and not state.tasks)


async def until(condition: Any) -> None:
    """Wait until the loop has made `condition` true."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)
