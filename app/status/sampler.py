"""One sampler for all who watch: a snapshot each second, written once and sent to all.

Its timer runs only while somebody watches. A watcher that reads slowly gets the newest snapshot
when it is ready for one, and those before are not kept for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import signal

import orjson

from penstock.backends.errors import PenstockError
from penstock.pipelines.repository import Repository

from .snapshot import INTERVAL_SECONDS, Snapshots
from .totals import Totals

logger = logging.getLogger("penstock.status")


class TooManyWatchers(PenstockError):  # noqa: N818
    """Raised when as many clients watch the server as may."""

    code = "too_many_watchers"


class Watcher:
    """One client that watches. It holds at most one snapshot: the newest that it has not taken."""

    __slots__ = ("_event", "_news", "ended")

    def __init__(self, event: bytes) -> None:
        """`event`: the first that it gets."""
        self.ended = False
        self._event: bytes | None = event
        self._news = asyncio.Event()
        self._news.set()

    def offer(self, event: bytes) -> None:
        """Replace what the watcher has not taken yet."""
        if not self.ended:
            self._event = event
            self._news.set()

    def end(self) -> None:
        """Let `take` return None from now on. What it has not taken is dropped."""
        self.ended = True
        self._event = None
        self._news.set()

    async def take(self) -> bytes | None:
        """Wait for the next event and return it; None at the end."""
        await self._news.wait()
        event, self._event = self._event, None
        if not self.ended:
            self._news.clear()
        return event


class Sampler:
    """The watchers of one server, on one event loop at a time."""

    def __init__(self, repository: Repository, snapshots: Snapshots, max_watchers: int) -> None:
        self.watchers: set[Watcher] = set()
        self._repository = repository
        self._snapshots = snapshots
        self._max_watchers = max_watchers
        self._totals: Totals | None = None
        self._event = b""
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Empty: the timer inherits no request's variables.
        self._context = contextvars.Context()

    def __repr__(self) -> str:
        return f"<Sampler {len(self.watchers)} of {self._max_watchers} watchers>"

    def join(self) -> Watcher:
        """Add a watcher. Call `leave` when it has ended. Raises `TooManyWatchers`.

        While the server drains or is closed it gets one snapshot.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # One loop at a time serves an app. What an earlier one left has ended with it.
            self.watchers.clear()
            self._timer = self._totals = None
            self._loop = loop
        if len(self.watchers) >= self._max_watchers:
            raise TooManyWatchers(
                f"{self._max_watchers} clients watch the server already (max_watchers = "
                f"{self._max_watchers}): try again later, or read /status without events"
            )
        if self._timer is None:
            self._sample(loop)
            self._set_timer(loop)
            self._repository.on_close.add(self.end)
        watcher = Watcher(self._event)
        watcher.ended = self._repository.state in {"draining", "closed"}
        self.watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """Remove a watcher. After the last one nothing runs."""
        self.watchers.discard(watcher)
        if not self.watchers:
            self._stop()

    def end(self) -> None:
        """End all watchers: the server ends, and must not wait for them."""
        for watcher in self.watchers:
            watcher.end()
        self.watchers.clear()
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._totals = None
        self._event = b""
        self._repository.on_close.discard(self.end)

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(INTERVAL_SECONDS, self._tick, loop, context=self._context)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            return
        self._set_timer(loop)
        if _server_ends():
            self.end()
            return
        self._asking = loop.create_task(self._ask(loop), context=self._context)

    async def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        """Offer the watchers a snapshot, after asking the other processes of the server."""
        await self._repository.others.refresh()
        if loop is not self._loop or self._timer is None:
            return  # all have left meanwhile
        try:
            self._sample(loop)
        except Exception:
            logger.exception("no snapshot of the pipelines could be made")
            self.end()
            return
        for watcher in self.watchers:
            watcher.offer(self._event)

    def _sample(self, loop: asyncio.AbstractEventLoop) -> None:
        snapshot, self._totals = self._snapshots.take(self._totals, loop.time())
        self._event = b"event: status\ndata: %s\n\n" % orjson.dumps(snapshot)


def _server_ends() -> bool:
    """Return whether uvicorn is about to end this process.

    It waits for all answers before it ends the lifespan, and tells nobody. Its handler of signals
    is a method of its server.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return getattr(server, "should_exit", False) is True
