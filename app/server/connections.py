"""State that all connections of a server share: their limits, one timer for all, and counts.

A timer for each connection would outlive it, and cost each request the time to set and cancel it.
So a connection only writes down its deadline, and one timer looks at all of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Protocol

from ..settings import Settings
from .calls import Routes, Tunnels
from .direct_routes import routes_of
from .head import KnownHeads

logger = logging.getLogger("penstock.connection")

TICK_SECONDS = 0.5
"""How often deadlines are looked at. A connection ends at most so much later."""

READ_SECONDS = 0.05
"""How long after a deadline what had arrived by then may still be read.

After a stall of the loop, uvloop's timers come before its reads. It is longer than the app's own
time (app/http/exchange.py), whose error comes first.
"""

KEPT_DESCRIPTORS = 128
"""By default connections leave so many file descriptors to everything else."""

FREE_DESCRIPTORS = 4
"""With fewer free descriptors a new connection is refused."""

MAX_REFUSED = 64
"""So many refused connections may wait until the client has read its answer. Further ones are
closed without an answer.
"""

REASONS = ("malformed", "late", "refused", "memory", "descriptors")
"""Why connections were closed, as /metrics names it: a request that is not HTTP or has too large a
head, a client that passed a time-out, a connection above `max_connections`, `max_memory` reached,
no free file descriptor.
"""


class Tracked(Protocol):
    """A connection as the timer knows it. Its deadlines are on the loop's clock, in seconds."""

    deadline: float
    send_deadline: float

    def expire(self, now: float) -> None: ...

    def shutdown(self) -> None: ...

    def abort(self) -> None: ...


class Connections:
    """The connections of one server, for `uvicorn.Config(http=partial(Connection, connections))`.

    `closed` counts the connections that the server ended, by `REASONS`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.idle_timeout = settings.idle_timeout  # pydantic's look-up takes long
        self.max_descriptors = max_descriptors()
        self.max_connections = settings.max_connections or default_max_connections(
            self.max_descriptors
        )
        self.open: set[Tracked] = set()
        self.refused: set[Tracked] = set()
        """Refused connections that are still open, so that their clients can read why."""
        self.draining = False
        self.closing = False
        """Each connection closes after its next answer. So it is in a drain, too."""
        self.tunnels: Tunnels | None = None
        """Requests without a call go there, not to an app."""
        self.direct = True
        """Connections answer small requests themselves where that is possible. Tests turn it off.
        """
        self.heads = KnownHeads()
        self._direct_app: object = None
        self._direct_routes: Routes | None = None
        self.closed: dict[str, int] = dict.fromkeys(REASONS, 0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._probed_at = 0.0
        self._default_headers: list[tuple[bytes, bytes]] = []
        self._default_head = b""

    def __repr__(self) -> str:
        return f"<Connections {len(self.open)} of {self.max_connections}>"

    def add(self, connection: Tracked, loop: asyncio.AbstractEventLoop) -> None:
        self.open.add(connection)
        if loop is not self._loop:
            self.watch(loop)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at the deadlines from now on, on this loop."""
        self._loop = loop
        loop.call_later(TICK_SECONDS, self.tick, loop)

    def remove(self, connection: Tracked) -> None:
        self.open.discard(connection)
        self.refused.discard(connection)

    def default_head(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return uvicorn's headers for every answer, as lines. Its list is another one when the
        date changes.
        """
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return self._default_head

    def retire(self) -> None:
        """Close each connection after its next answer, however late its request comes."""
        self.closing = True

    def drain(self) -> None:
        """Close all connections: each after its answer, those without a request after
        `drain_grace`.
        """
        self.draining = self.closing = True
        for connection in tuple(self.open):
            connection.shutdown()

    def direct_routes(self, app: object, root_path: str = "") -> Routes | None:
        """Return the routes of an app whose requests its connections may answer themselves."""
        if self._direct_app is not app:
            self._direct_app = app
            self._direct_routes = routes_of(app, root_path) if self.direct else None
        return self._direct_routes

    def abort(self) -> None:
        """Close all connections at once."""
        for connection in tuple(self.open):
            connection.abort()

    def timeout(self, seconds: float) -> float:
        """Return how long a request is waited for: `seconds`, or `drain_grace` while it drains."""
        return self.settings.drain_grace if self.draining else seconds

    def close(self, reason: str, message: str, *values: object) -> None:
        """Count and log that the server ends a connection."""
        self.closed[reason] += 1
        logger.warning(message, *values)

    def lacks_descriptors(self, newest: int) -> bool:
        """Return whether the newest descriptor, which is the lowest free number, is one of the
        last.
        """
        if newest < self.max_descriptors - FREE_DESCRIPTORS:
            return False
        self.count_lack()
        return True

    def count_lack(self) -> None:
        """Count and log that no file descriptor was left."""
        self.close(
            "descriptors",
            "out of file descriptors (ulimit -n is %d): new connections are refused",
            self.max_descriptors,
        )

    def tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at the deadlines that have passed by now, after what has arrived by now is read."""
        if loop is self._loop:
            loop.call_later(TICK_SECONDS, self.tick, loop)
            loop.call_later(READ_SECONDS, self.look, loop.time())

    def look(self, now: float) -> None:
        """End the connections whose deadline had passed at `now`."""
        for connection in tuple(self.open):
            if connection.deadline <= now or connection.send_deadline <= now:
                connection.expire(now)
        if now >= self._probed_at + 1:
            self._probed_at = now
            try:  # uvloop closes a connection that finds no descriptor, and tells no one
                os.close(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                self.count_lack()


def max_descriptors() -> int:
    """Return how many file descriptors this process may have (RLIMIT_NOFILE)."""
    if sys.platform == "win32":
        return 1 << 16
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def default_max_connections(descriptors: int) -> int:
    """Return how many connections may be open if so many descriptors may be."""
    return max(descriptors - KEPT_DESCRIPTORS, descriptors // 2, 1)
