"""The parent process when the system has no process or no descriptor left."""

from __future__ import annotations

import errno
import socket
from collections import deque
from typing import Any

import pytest

from penstock.app.processes.control import Role
from penstock.app.processes.parent import handover
from penstock.app.processes.parent.generation import Generation
from penstock.app.processes.parent.handover import Handover

from ...server.wire import until


def ignore(*_: Any) -> None:
    pass


class FakeChild:
    """A child without a process. `lack`: so many messages find no descriptor."""

    def __init__(self, role: Role, lack: int = 0) -> None:
        self.role = role
        self.pid = 0
        self.ready = self.linked = self.prepared = self.alive = True
        self.listens = self.killed = False
        self.open = self.lack = lack
        self.pending: deque[socket.socket] = deque()
        self.taken: list[socket.socket] = []
        self.started_at = 0.0
        self.end = "it ended"
        self.left_out: dict[str, str] = {}
        self.on_change: Any = ignore

    def send(self, *message: Any, descriptors: Any = ()) -> None:
        if self.lack and descriptors:
            self.lack -= 1
            raise OSError(errno.EMFILE, "Too many open files")

    def hand(self, connection: socket.socket) -> None:
        self.send(descriptors=[connection.fileno()])
        self.taken.append(connection)

    def kill(self) -> None:
        self.killed = True


class FakeChildren:
    """Starts nothing. `fails`: there is no process left."""

    def __init__(self) -> None:
        self.fails = False
        self.started: list[FakeChild] = []

    def start(self, role: Role) -> FakeChild:
        if self.fails:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        self.started.append(FakeChild(role))
        return self.started[-1]


def generation_of(children: FakeChildren) -> Generation:
    of_children: Any = children
    return Generation(of_children, 2, ignore, ignore)


async def test_no_process_can_be_started() -> None:
    children = FakeChildren()
    children.fails = True
    new = generation_of(children)
    new.start()
    reason = await new.started
    assert reason == "a process can't be started: Resource temporarily unavailable"
    await new.abandon()
    assert new.all == []


async def test_a_restarted_process_that_can_not_be_linked_does_not_stay() -> None:
    children = FakeChildren()
    running = generation_of(children)
    running.start()
    models, front = children.started[:2]
    for child in children.started:
        child.linked = child.prepared = True
        child.on_change(child)
    assert await running.started == ""
    models.alive = False
    front.lack = 1
    models.on_change(models)  # it has died
    await until(lambda: len(children.started) == 4)
    assert children.started[3].killed  # so that there is one at a time, which is restarted


async def test_a_connection_waits_for_a_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "RETRY_SECONDS", 0.001)
    front: Any = FakeChild(Role(1), lack=2)
    listener = socket.create_server(("127.0.0.1", 0))
    hands = Handover([listener])
    hands.fronts = [front]
    hands.update()
    with socket.create_connection(listener.getsockname()):
        await until(lambda: front.taken)
    assert len(front.taken) == 1 and not front.pending
    front.taken[0].close()
    hands.close()
