"""Requests that are lost while processes are killed, or all are replaced, under load."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from figures import Figure, say
from scale_servers import clients_of, names_of
from servers import Server, penstock

from penstock.app.bench.client import HttpClient
from penstock.app.bench.load import NO_ANSWER

PART = "scale"
CLIENTS = 16
BODY = b"x" * 1024
OK = 200
PATIENCE_SECONDS = 60.0
"""Time in which a killed process must be there again, or a reload be done."""

Event = Callable[["Load"], Awaitable[None]]


class Load:
    """Clients with a connection each, one request at a time, until `end`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.statuses: Counter[int] = Counter()
        self.last_failure = 0.0
        self._over = False
        self._changed = asyncio.Condition()

    async def run(self, event: Event) -> None:
        """Load the server until an event is over."""
        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(self._client()) for _ in range(CLIENTS)]
            try:
                await event(self)
            finally:
                self._over = True
            await asyncio.wait(clients)

    async def answered(self, count: int) -> None:
        """Wait until so many more requests are answered with 200."""
        target = self.statuses[OK] + count
        async with asyncio.timeout(PATIENCE_SECONDS), self._changed:
            await self._changed.wait_for(lambda: self.statuses[OK] >= target)

    async def _client(self) -> None:
        client = HttpClient(self.server.url("/predict/noop"))
        try:
            while not self._over:
                answer = await client.send(BODY)
                self.statuses[answer.status] += 1
                if answer.status != OK:
                    self.last_failure = time.perf_counter()
                    await asyncio.sleep(0.01)  # a server that refuses at once is asked less often
                async with self._changed:
                    self._changed.notify_all()
        finally:
            await client.close()

    @property
    def failed(self) -> int:
        return self.statuses.total() - self.statuses[OK]


def measure(folder: Path, quick: bool) -> list[Figure]:
    figures = []
    with penstock(folder / "noop.toml", "--processes", "2") as server:
        figures.append(asyncio.run(kill_fronts(server, 2 if quick else 5)))
        figures += asyncio.run(kill_models(server, 1 if quick else 3))
        figures.append(asyncio.run(reload(server, 10_000 if quick else 100_000)))
    return figures


async def kill_fronts(server: Server, times: int) -> Figure:
    """Kill a front process under load, several times."""
    load = Load(server)
    held = beyond = 0

    async def event(load: Load) -> None:
        nonlocal held, beyond
        for _ in range(times):
            await load.answered(2000)
            pid = names_of(server)["front 1"]
            of_front = len(clients_of(pid, server.port))
            before = load.failed
            os.kill(pid, signal.SIGKILL)
            await _replaced(server, {"front 1": pid})
            await load.answered(2000)
            held += of_front
            beyond += max(0, load.failed - before - of_front)

    await load.run(event)
    note = (
        f"{times} kills; {load.failed} of {load.statuses.total():,} requests failed, "
        f"{dict(load.statuses)}; the killed ones held {held} connections"
    )
    say(f"   kill -9 of a front: {note}")
    return Figure(
        PART, "kill -9 of a front: requests lost beyond what it held", beyond, most=0, note=note
    )


async def kill_models(server: Server, times: int) -> list[Figure]:
    """Kill the model process under load, several times."""
    load = Load(server)
    pauses = []

    async def event(load: Load) -> None:
        for _ in range(times):
            await load.answered(2000)
            pid = names_of(server)["models"]
            killed = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            await _replaced(server, {"models": pid})
            await load.answered(2000)
            pauses.append(load.last_failure - killed)

    await load.run(event)
    broken = load.statuses[NO_ANSWER]
    note = f"{times} kills; {load.failed} failed: {dict(load.statuses)}"
    say(f"   kill -9 of the model process: {note}")
    return [
        Figure(
            PART,
            "kill -9 of the model process: connections broken",
            broken,
            most=0,
            note=note,
        ),
        Figure(
            PART,
            "kill -9 of the model process: time until the last 503",
            max(pauses),
            "s",
            note="the load of the no-op pipeline; others take as long as their models",
        ),
    ]


async def reload(server: Server, requests: int) -> Figure:
    """Replace all processes again and again under load, for at least so many requests."""
    load = Load(server)
    reloads = 0

    async def event(load: Load) -> None:
        nonlocal reloads
        while load.statuses.total() < requests:
            before = names_of(server)
            del before["parent"]
            os.kill(server.pid, signal.SIGHUP)
            await _replaced(server, before)
            reloads += 1
            await load.answered(min(requests // 4, 10_000))

    await load.run(event)
    note = f"{reloads} reloads, {load.statuses.total():,} requests: {dict(load.statuses)}"
    say(f"   rolling reload: {note}")
    return Figure(PART, "rolling reload: requests that failed", load.failed, most=0, note=note)


async def _replaced(server: Server, before: dict[str, int]) -> None:
    """Wait until other processes have these names. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            names = names_of(server)
            if all(names.get(name, pid) != pid for name, pid in before.items()):
                return
            await asyncio.sleep(0.05)
