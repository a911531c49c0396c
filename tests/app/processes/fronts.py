"""A model process in a thread, and the other ends of its links: what fronts and the parent do."""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import marshal
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from penstock.app.processes import messages
from penstock.app.processes.arena import Arena, Mapping
from penstock.app.processes.control import Control
from penstock.app.processes.models.process import serve_models
from penstock.app.settings import Settings
from penstock.pipelines.repository import Repository

SECONDS = 20.0


class End:
    """One end of a link or of the control socket, which waits for each message."""

    def __init__(self) -> None:
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(SECONDS)
        self.other = other.detach()
        self.descriptors: deque[int] = deque()
        self._messages: deque[tuple[Any, ...]] = deque()

    def send(self, *message: Any, descriptors: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self.socket.sendmsg([marshal.dumps([message], 2)], rights if descriptors else [])

    def receive(self) -> tuple[Any, ...]:
        """Return the next message. Raises EOFError at the end, TimeoutError after 20 s."""
        while not self._messages:
            packet, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 16, 64)
            if not packet:
                raise EOFError
            self.descriptors += descriptors
            self._messages += marshal.loads(packet)
        return self._messages.popleft()

    def close(self) -> None:
        self.socket.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


class StubFront(End):
    """A front whose client is the test."""

    def __init__(self, number: int = 1, arena_bytes: int = 64 << 20) -> None:
        super().__init__()
        self.number = number
        self.arena = Arena(arena_bytes)
        self.mapping: Mapping | None = None
        self._ids = 0

    def greet(self) -> bytes:
        """Say hello, and return the table of front nodes."""
        self.send(messages.HELLO, descriptors=[self.arena.descriptor])
        assert self.receive() == (messages.HELLO,)
        self.mapping = Mapping(self.descriptors.popleft())
        kind, table, _loaded = self.receive()
        assert kind == messages.TABLE
        return self.content(table)

    def content(self, body: messages.Body) -> bytes:
        """Copy a body, and free its extent."""
        if isinstance(body, bytes):
            return body
        assert self.mapping is not None
        content = bytes(self.mapping.view(*body))
        self.send(messages.FREE, [body[0]])
        return content

    def request(
        self,
        path: str,
        body: bytes | tuple[int, int],
        *headers: str,
        size: int | None = None,
        first_byte: float = 0.0,
        kind: int = messages.REQUEST,
    ) -> int:
        """Send a request, and return its id."""
        self._ids += 1
        if kind == messages.ASK:
            rest: tuple[Any, ...] = (("192.0.2.1", 7), first_byte, True)
        else:
            rest = (body, ("192.0.2.1", 7), first_byte, True)
        if size is None:
            size = len(body) if isinstance(body, bytes) else body[1]
        self.send(kind, self._ids, head_of(path, size, *headers), *rest)
        return self._ids

    def answer(self) -> tuple[int, int, bytes, bytes]:
        """Receive an answer: its id, status, head and body."""
        message = self.receive()
        assert message[0] == messages.ANSWER, message
        _, number, status, head, body, _keep_alive, _log = message
        return number, status, head, self.content(body)

    def receive(self) -> tuple[Any, ...]:
        """Return the next message that is for the test: not FREE, and not the settings of the log,
        which come whenever a front is linked. These are followed.
        """
        while self._follow(message := super().receive()):
            pass
        return message

    def until_free(self) -> None:
        """Receive until the model process has let go of all extents."""
        while self.arena.in_use:
            message = super().receive()
            assert self._follow(message), message

    def _follow(self, message: tuple[Any, ...]) -> bool:
        if message[0] == messages.FREE:
            for offset in message[1]:
                self.arena.free(offset)
        elif message[0] == messages.QUERY and b"log_file" in message[2]:
            self.send(messages.REPLY, message[1], b"")
        else:
            return False
        return True

    def close(self) -> None:
        super().close()
        self.arena.close()
        if self.mapping is not None:
            self.mapping.close()


def head_of(path: str, size: int, *headers: str, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", f"content-length: {size}", *headers, "", ""]
    return "\r\n".join(lines).encode()


class Models:
    """A model process that runs in a thread of this one."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self.control = End()
        self.repository = repository
        self.code: int | None = None
        end = socket.socket(fileno=self.control.other)
        log: Any = _NoLog()

        def run() -> None:
            self.code = serve_models(repository, settings, end, log)

        self.thread = threading.Thread(target=run)
        self.thread.start()
        self.control.send(Control.ADDRESS, ("127.0.0.1", 8000))

    def link(self, front: StubFront) -> None:
        self.control.send(Control.LINK, front.number, descriptors=[front.other])
        os.close(front.other)

    @contextlib.contextmanager
    def front(self, number: int = 1, arena_bytes: int = 64 << 20) -> Iterator[StubFront]:
        front = StubFront(number, arena_bytes)
        try:
            self.link(front)
            front.greet()
            yield front
        finally:
            front.close()

    def call(self, function: Callable[[], None]) -> None:
        """Call a function on the event loop of the process, soon."""
        self._loop().call_soon_threadsafe(function)

    def ask(self, payload: bytes, seconds: float) -> Future[list[tuple[int, bytes]]]:
        """Let the process ask all its fronts."""
        links: Any = self.repository.on_pressure
        query = links.__self__.query(payload, seconds)
        return asyncio.run_coroutine_threadsafe(query, self._loop())

    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = next(iter(self.repository.served))._loop
        assert loop is not None
        return loop

    def end(self, seconds: float = 5.0) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            self.control.send(Control.END, seconds)
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        self.control.close()


class _NoLog:
    """Stands for the log, which writes what is logged to standard error."""

    class limit:
        @staticmethod
        def tell() -> None:
            """Nothing was left out."""

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> list[Any]:
        return []


@contextlib.contextmanager
def models(*tables: dict[str, Any], **settings: Any) -> Iterator[Models]:
    """Serve pipelines in a model process, which is ready."""
    logging.getLogger("penstock.access").setLevel("INFO")  # as `configure_logging` does
    process = Models(Repository.read(list(tables)), Settings(**settings))
    try:
        assert process.control.receive()[0] == Control.READY
        yield process
    finally:
        process.end()
