"""A child process as the parent sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ..control import Control, Role
from ..packets import Packets

LAST_MESSAGES_SECONDS = 1.0
"""So long the last messages of a process that has ended are waited for. Usually they are there, but
a process that it forked may hold its socket open.
"""


class Child:
    """A front or the model process, and what it has said on its control socket.

    `on_change` is called after each message that changes its state, and once it has ended.
    """

    def __init__(self, role: Role, pid: int, end: socket.socket) -> None:
        self.role = role
        self.pid = pid
        self.started_at = time.monotonic()
        self.ready = False
        self.link = 0  # the serial number of its newest link
        self.linked = False
        self.prepared = False  # its front nodes are loaded
        self.drained = False
        self.listens = False  # at its own sockets (balance = kernel)
        self.left_out: dict[str, str] = {}
        """The pipelines that it could not load, with the reasons."""
        self.read = False
        """It has read the files of the pipelines. They are fine."""
        self.failure = ""
        """Why it could not start, in its own words."""
        self.problems: list[str] = []
        """The same for what is wrong in files."""
        self.code: int | None = None
        """Its exit code, once it has ended; of a signal, the negative number."""
        self.open = 0
        """The connections that it was handed and that have not ended."""
        self.pending: deque[socket.socket] = deque()
        """Those of them that it has not taken yet. If it dies, another one gets them."""
        self.on_change: Callable[[Child], None] = _ignore
        self.on_room: Callable[[], None] = _nothing
        self._loop = asyncio.get_running_loop()
        self._gone = False  # all that it sent has been received
        self._exit_code: int | None = None
        self._control = Packets(end, self._received, self._closed)
        self._control.start()

    def __repr__(self) -> str:
        state = "running" if self.code is None else f"ended with {self.code}"
        return f"<Child {self.role} {state}>"

    @property
    def alive(self) -> bool:
        return self.code is None

    def send(self, *message: Any, descriptors: Sequence[int] = ()) -> None:
        self._control.send(message, descriptors)

    def hand(self, connection: socket.socket) -> None:
        """Give it a connection that was accepted. Raises OSError if no descriptor is left."""
        self.send(Control.CONNECTION, descriptors=[connection.fileno()])
        self.open += 1
        self.pending.append(connection)
        self._control.flush()  # its client waits

    def kill(self) -> None:
        if self._exit_code is None:  # else its id may be that of another process
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def exited(self, code: int) -> None:
        """Note that it has ended, after its last messages have been received."""
        self._exit_code = code
        if self._gone:
            self._finish()
        else:
            self._loop.call_later(LAST_MESSAGES_SECONDS, self._finish)

    def _closed(self) -> None:
        self._gone = True
        if self._exit_code is not None:
            self._finish()

    def _finish(self) -> None:
        if self.code is not None:
            return
        self.code = self._exit_code
        self.ready = self.linked = self.prepared = self.listens = False
        self.open = 0
        self._control.close()
        self.on_change(self)

    @property
    def end(self) -> str:
        """Say how it ended, for the log."""
        if self.failure or self.problems:
            return self.failure or "; ".join(self.problems)
        code = self.code or 0
        if code >= 0:
            return f"it ended with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"it was ended by {name}"

    def _received(self, message: tuple[Any, ...], descriptors: Sequence[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        kind = message[0]
        if kind == Control.TAKEN:
            for _ in range(message[1]):
                self.pending.popleft().close()
            self.on_room()
        elif kind == Control.CLOSED:
            self.open -= message[1]
        elif kind == Control.READY:
            self.ready = True
            if len(message) > 1:
                self.left_out = message[1]
            self.on_change(self)
        elif kind == Control.LINKED:
            self.linked = message[1] == self.link
            self.on_change(self)
        elif kind == Control.PREPARED:
            self.prepared = message[1] == self.link
            self.on_change(self)
        elif kind == Control.DRAINED:
            self.drained = True
            self.on_change(self)
        elif kind == Control.READ:
            self.read = True
            self.on_change(self)
        elif kind == Control.FAILED:
            self.failure = str(message[1])
        elif kind == Control.PROBLEMS:
            self.problems = [str(problem) for problem in message[1]]


def _ignore(child: Child) -> None:
    pass


def _nothing() -> None:
    pass
