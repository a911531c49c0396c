"""A front and a model process, each in a thread of this process, as one server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvloop

from penstock.app.http.tls import tls_context
from penstock.app.processes.control import Control
from penstock.app.processes.front.process import Front
from penstock.app.settings import Settings

from ...server.doors import Door
from ..fronts import End, Models, models


class FrontThread:
    """A front that runs in a thread, and its parent's end of the control socket."""

    def __init__(self, settings: Settings) -> None:
        self.control = End()
        self.front: Front
        self._settings = settings
        self._end = socket.socket(fileno=self.control.other)
        self._serial = 0
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        assert self.control.receive() == (Control.READY,)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        tls = tls_context(self._settings, "http/1.1")
        self.front = Front(self._settings, self._end, tls)
        await self.front.run()

    def link(self, process: Models, number: int = 1) -> None:
        """Link the front and a model process."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._serial += 1
        with here, there:
            process.control.send(Control.LINK, number, descriptors=[here.fileno()])
            self.control.send(Control.LINK, self._serial, descriptors=[there.fileno()])
        while self.control.receive() != (Control.LINKED, self._serial):
            pass

    def listen(self) -> int:
        """Let the front accept connections. Return the port."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.control.send(Control.LISTEN, descriptors=[listener.fileno()])
            return int(listener.getsockname()[1])

    def end(self, seconds: float = 5.0) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.control.send(Control.END, seconds)
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.control.close()


@contextlib.contextmanager
def front_door(*tables: dict[str, Any], **settings: Any) -> Iterator[tuple[Door, Models]]:
    """Serve pipelines by a front and a model process, which are ready."""
    with models(*tables, **settings) as process:
        front = FrontThread(Settings(**settings))
        try:
            front.link(process)
            yield Door(front.listen(), front.front.connections), process
        finally:
            front.end()
