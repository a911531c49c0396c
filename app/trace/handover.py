"""Hands what has ended from the event loop to a thread, without ever making the loop wait."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

logger = logging.getLogger("penstock.trace")

MAX_WAITING = 2048
"""The most traces that wait for the thread. More are dropped and counted."""

GATHER_SECONDS = 0.2
"""The thread waits so long for more, because each time that it wakes costs the event loop time."""

CLOSE_SECONDS = 5.0
"""The time that what waits at the end has to be written or sent."""

Taken = TypeVar("Taken")
Taken_contra = TypeVar("Taken_contra", contravariant=True)


class Sink(Protocol[Taken_contra]):
    """Takes what has ended, on the thread of the handover.

    `written` and `dropped` count it.
    """

    @property
    def written(self) -> int: ...
    @property
    def dropped(self) -> int: ...

    def take(self, ended: Sequence[Taken_contra]) -> None:
        """Write or send it. May wait."""

    def lose(self, count: int) -> None:
        """Count what could not be taken."""

    def hurry(self) -> None:
        """Let `take` wait no more: the server ends. Called on any thread."""

    def close(self, timeout: float) -> None:
        """Write or send all that is left, within `timeout` seconds."""


class Handover(Generic[Taken]):
    """A bounded queue, and the thread that empties it into `sink`.

    The thread starts with the first trace, and again after `close`.
    """

    def __init__(self, sink: Sink[Taken], *, gather: float = GATHER_SECONDS) -> None:
        self.sink = sink
        self._dropped = 0
        self._gather = gather
        self._queue: deque[Taken] = deque()
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """The number of traces that were lost."""
        return self._dropped + self.sink.dropped

    def put(self, ended: Taken) -> None:
        """Queue a trace, or drop it if too many wait."""
        if len(self._queue) >= MAX_WAITING:
            self._dropped += 1
            return
        self._queue.append(ended)
        if not self._woken.is_set():
            self._woken.set()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="trace", daemon=True)
                self._thread.start()

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Write what waits, and end the thread, within about `timeout` seconds: half of them for
        the queue, the rest for the sink. May be called from any thread, and again.
        """
        thread = self._thread
        if thread is None:
            return
        ends = time.monotonic() + timeout
        self._closing.set()
        self._woken.set()
        thread.join(timeout / 2)
        self.sink.hurry()
        thread.join(timeout / 2)
        if thread.is_alive():
            logger.warning("traces could not be written within %g s, and are lost", timeout)
            return
        self.sink.close(max(0.0, ends - time.monotonic()))
        self._thread = None
        self._woken.clear()
        self._closing.clear()

    def _run(self) -> None:
        closing = False
        while not closing:
            self._woken.wait()
            self._closing.wait(self._gather)
            closing = self._closing.is_set()
            self._woken.clear()
            taken = [self._queue.popleft() for _ in range(len(self._queue))]
            try:
                self.sink.take(taken)
            except Exception:
                self.sink.lose(len(taken))
                logger.exception("%d traces are lost", len(taken))
            del taken  # it may hold much, and the next ones may be long in coming
