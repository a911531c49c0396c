"""Slow requests: bound the time of an upload, and notice that a client leaves while it waits.

A timer or a task for every request would cost a third of the rate
(docs/explanation/performance.md). So a request is only noted here, and one timer looks at those
that are still here `SLOW_AFTER_SECONDS` later. Only these get a timer of their own (during the
upload) or a task that listens for the client's departure (during the wait for an answer).
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, Protocol

from starlette.types import Receive

from penstock.backends.memory import Reservation

SLOW_AFTER_SECONDS = 0.02

READ_SECONDS = 0.02
"""How long after a time-out what had arrived by then may still be read."""


class UploadTimer:
    """Call `callback` at `when`, on the loop's clock, but read first what has arrived by then.

    After a stall of the loop, uvloop's timers come before its reads, and asyncio's before the tasks
    that its reads wake. A body that has arrived in time would be refused.
    """

    __slots__ = ("_callback", "_handle", "_loop")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, when: float, callback: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._callback = callback
        self._handle = loop.call_at(when, self._read_first)

    def cancel(self) -> None:
        self._handle.cancel()

    def _read_first(self) -> None:
        self._handle = self._loop.call_later(READ_SECONDS, self._callback)


class PendingWork(Protocol):
    """Work for a request, such as a `Run`, that is dropped when the client leaves."""

    @property
    def future(self) -> asyncio.Future[Any]: ...
    def leave(self) -> None: ...


def leave(runs: Sequence[PendingWork], memory: Reservation) -> None:
    """End the work for a request that has been answered or whose client left.

    `memory` is closed. If the client left while a batch was running, it stays reserved until the
    batch lets go of its items: no one can take them from an executor.
    """
    abandoned = False
    for run in runs:
        run.leave()
        if run.future.cancelled():
            abandoned = True
            # Whoever runs the item refers to the future.
            weakref.finalize(run.future, _let_go, memory).atexit = False
    if not abandoned:
        memory.close()


def _let_go(memory: Reservation) -> None:
    """Do nothing: the reservation ends with the last reference to it."""


class Exchange:
    """One request and its answer, as far as the watch knows them.

    `started` is on the loop's clock, in seconds. `unread` is false once the whole body is here.
    """

    __slots__ = ("helper", "receive", "runs", "started", "task", "timed_out", "unread")

    def __init__(self, receive: Receive, task: asyncio.Task[None], started: float) -> None:
        self.receive = receive
        self.task = task
        self.started = started
        self.runs: Sequence[PendingWork] = ()  # empty while the body is read and parsed
        self.unread = True
        self.timed_out = False
        self.helper: asyncio.Task[None] | UploadTimer | None = None

    def listen(self) -> None:
        """Listen for the client's departure.

        Call it only after the body has been read: one reader at a time.
        """
        if self.helper is not None:
            self.helper.cancel()
        self.helper = asyncio.create_task(self._listen(), context=contextvars.Context())

    def watch_slow(self, loop: asyncio.AbstractEventLoop, body_timeout: float) -> None:
        """Give the request the timer or the task that slow ones get. Called at most once."""
        if self.runs:
            self.listen()
        else:
            self.helper = UploadTimer(loop, self.started + body_timeout, self._upload_timed_out)

    def _upload_timed_out(self) -> None:
        if self.unread:
            self.timed_out = True
            self.task.cancel()

    async def _listen(self) -> None:
        message = await self.receive()
        while message["type"] != "http.disconnect":  # trailing messages of a complete body
            message = await self.receive()
        # `leave` cancels the future that the request's own task awaits, not that task.
        for pending in self.runs:
            pending.leave()


class Watch:
    """The requests that have not ended and are not known to be slow, with one timer for all."""

    __slots__ = ("_body_timeout", "_context", "_recent", "_ticking")

    def __init__(self, body_timeout: float) -> None:
        self._body_timeout = body_timeout
        # A dict, for its order and its cheap removal. A request must leave it when it ends: kept
        # alive until the timer rings, it would make the next request take cold memory.
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
            # The cancelled task holds its exception, which holds the frame, which holds the
            # exchange. If the exchange held the task, that would be a cycle around all the data of
            # the request, and only the collector would free it.
            exchange.helper.cancel()
            exchange.helper = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        # One look covers all requests of an interval, so a request is known to be slow after one to
        # two intervals.
        slow_since = loop.time() - SLOW_AFTER_SECONDS
        slow = list(takewhile(lambda exchange: exchange.started <= slow_since, self._recent))
        for exchange in slow:
            del self._recent[exchange]
            exchange.watch_slow(loop, self._body_timeout)
        self._ticking = bool(self._recent)
        if self._ticking:
            loop.call_later(SLOW_AFTER_SECONDS, self._look, loop, context=self._context)
