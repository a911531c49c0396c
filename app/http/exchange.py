"""Slow requests: the time bound of an upload, and noticing that a client has left while its request waits.

A timer or a task for every request would cost a third of the rate (docs/explanation/performance.md). So a request only leaves its name here, and
one timer looks at those that are still there `SLOW_AFTER_SECONDS` later: only these get a timer of their own (while uploading) or a task that
listens for the client's departure (while waiting for an answer).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

from starlette.types import Receive

SLOW_AFTER_SECONDS = 0.02
"""Seconds before a request counts as slow."""


class PendingWork(Protocol):
    """What is done for a request (a `Run`): dropped when the client leaves."""

    def leave(self) -> None: ...


class Exchange:
    """One request and its answer, as far as the watch needs to know it. `started` is on the loop's clock, in seconds."""

    __slots__ = ("helper", "receive", "runs", "started", "task", "timed_out")

    def __init__(self, receive: Receive, task: asyncio.Task[None], started: float) -> None:
        self.receive = receive
        self.task = task
        self.started = started
        self.runs: Sequence[PendingWork] = ()  # empty while the body is being read
        self.timed_out = False
        self.helper: asyncio.Task[None] | asyncio.TimerHandle | None = None

    def listen(self) -> None:
        """Listen for the client's departure. Only once the body has been read: one reader at a time."""
        if self.helper is not None:
            self.helper.cancel()
        self.helper = asyncio.create_task(self._listen(), context=contextvars.Context())

    def grow_slow(self, loop: asyncio.AbstractEventLoop, body_timeout: float) -> None:
        """Called once, `SLOW_AFTER_SECONDS` after the start, if it has not ended."""
        if self.runs:
            self.listen()
        else:
            self.helper = loop.call_at(self.started + body_timeout, self._upload_timed_out)

    def _upload_timed_out(self) -> None:
        self.timed_out = True
        self.task.cancel()

    async def _listen(self) -> None:
        message = await self.receive()
        while message["type"] != "http.disconnect":  # trailing messages of a complete body
            message = await self.receive()
        # `leave` cancels the future that the request's own task awaits; that task is not cancelled
        for work in self.runs:
            work.leave()


class Watch:
    """The requests that have not ended yet and are not known to be slow; one timer for all of them."""

    __slots__ = ("_body_timeout", "_context", "_recent", "_ticking")

    def __init__(self, body_timeout: float) -> None:
        self._body_timeout = body_timeout
        # A dict for its order and its cheap removal: a request that has ended must not be kept alive until the timer rings, or
        # every request would get cold memory.
        self._recent: dict[Exchange, None] = {}
        self._ticking = False
        self._context = contextvars.Context()

    def begin(self, exchange: Exchange, loop: asyncio.AbstractEventLoop) -> None:
        self._recent[exchange] = None
        if not self._ticking:
            self._ticking = True
            loop.call_later(SLOW_AFTER_SECONDS, self._look, loop, context=self._context)

    def end(self, exchange: Exchange) -> None:
        if exchange.helper is None:
            self._recent.pop(exchange, None)
        else:
            # The cancelled task keeps its error, that its frame, and that the exchange: with this, a cycle around all of the request's
            # data, which would wait for the collector.
            exchange.helper.cancel()
            exchange.helper = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        # One look covers all requests of a SLOW_AFTER_SECONDS, so a request is known to be slow after one to two of them.
        slow_since = loop.time() - SLOW_AFTER_SECONDS
        slow = list(takewhile(lambda exchange: exchange.started <= slow_since, self._recent))
        for exchange in slow:
            del self._recent[exchange]
            exchange.grow_slow(loop, self._body_timeout)
        self._ticking = bool(self._recent)
        if self._ticking:
            loop.call_later(SLOW_AFTER_SECONDS, self._look, loop, context=self._context)
